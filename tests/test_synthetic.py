"""The synthetic scenes are true, hard for a bag of words, and learnable from their features.

Captions are read here by a parser of its own and checked against the boxes of the record, colours
against the pixels; nothing of the grammar or the drawing is trusted.
"""

import colorsys
import itertools
import re
import time

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.sources import examples
from data_pipeline.synthetic import SyntheticScenes

SCENES = 500
SHAPES = ["circle", "square", "triangle", "star", "diamond"]
COLOURS = ["red", "green", "blue", "yellow", "purple", "black"]
TEXTURES = ["plain", "striped", "dotted"]
SIZES = ["small", "large"]
PLAIN_WORDS = {"big": "large", "spotted": "dotted"}
DESCRIBING = {*SHAPES, *COLOURS, *TEXTURES, *SIZES, *PLAIN_WORDS}
PHRASES = {
    "to the left of": "left of",
    "left of": "left of",
    "to the right of": "right of",
    "right of": "right of",
    "higher than": "above",
    "above": "above",
    "lower than": "below",
    "below": "below",
    "inside": "inside",
    "within": "inside",
    "around": "around",
    "overlapping": "overlapping",
}


@pytest.fixture(scope="module")
def source() -> SyntheticScenes:
    return SyntheticScenes({"train": 20, "test": SCENES})


@pytest.fixture(scope="module")
def records(source: SyntheticScenes) -> list[dict]:
    return list(examples(source, "test"))


@pytest.fixture(scope="module")
def worlds(source: SyntheticScenes, records: list[dict]) -> list[list[tuple[set, np.ndarray]]]:
    """Each scene as [(words of a thing, its box)], from the symbols and from the record."""
    worlds = []
    for record in records:
        things = []
        for thing in source.scene("test", int(record["index"])):
            middle = np.array([thing.x, thing.y]) / record["size"]
            boxes = record["boxes"][record["object_labels"] > 0]
            found = boxes[np.abs((boxes[:, :2] + boxes[:, 2:]) / 2 - middle).sum(1).argsort()[0]]
            words = {
                SHAPES[thing.shape],
                COLOURS[thing.colour],
                TEXTURES[thing.texture],
                SIZES[thing.size],
            }
            things.append((words, found))
        worlds.append(things)
    return worlds


def holds(predicate: str, a: np.ndarray, b: np.ndarray, clear: float = 1.39) -> bool:
    """The relation, from two boxes (x1, y1, x2, y2); sides need `clear` times the distance."""
    dx, dy = (b[:2] + b[2:] - a[:2] - a[2:]) / 2
    apart_x, apart_y = a[2] < b[0] or b[2] < a[0], a[3] < b[1] or b[3] < a[1]
    b_holds_a = bool((b[:2] <= a[:2]).all() and (a[2:] <= b[2:]).all())
    a_holds_b = bool((a[:2] <= b[:2]).all() and (b[2:] <= a[2:]).all())
    meet = not apart_x and not apart_y
    return {
        "left of": apart_x and dx >= clear * abs(dy),
        "right of": apart_x and -dx >= clear * abs(dy),
        "above": apart_y and dy >= clear * abs(dx),
        "below": apart_y and -dy >= clear * abs(dx),
        "inside": b_holds_a,
        "around": a_holds_b,
        "overlapping": meet and not a_holds_b and not b_holds_a,
    }[predicate]


def parse(caption: str) -> tuple[list[set[str]], list[tuple[int, str, int]]]:
    """The things a caption names, as sets of plain words, and its facts about them."""
    words = "|".join(sorted(DESCRIBING))
    pattern = rf"\ba((?: (?:{words}))+)"
    things = [
        {PLAIN_WORDS.get(word, word) for word in match.split()}
        for match in re.findall(pattern, caption)
    ]
    rest = re.sub(pattern, "@", caption)
    relation = "|".join(sorted(PHRASES, key=len, reverse=True))
    said = [PHRASES[phrase] for phrase in re.findall(relation, rest)]
    shape = re.sub(relation, "R", rest)
    if shape in ("@ is R @", "@ R @", "there is @ R @"):
        return things, [(0, said[0], 1)]
    if shape == "R @ there is @":
        return things, [(1, said[0], 0)]
    if shape in ("@ is R @ and R @", "there is @ R @ and R @", "@ is both R @ and R @"):
        return things, [(0, said[0], 1), (0, said[1], 2)]
    assert shape in ("@ is R @ and @ is R @", "@ R @ and @ R @"), caption
    return things, [(0, said[0], 1), (2, said[1], 3)]


def meanings(parsed: tuple, world: list[tuple[set, np.ndarray]]) -> list[tuple[int, ...]]:
    """Every way to read a caption so that it is true of a scene."""
    things, facts = parsed
    fitting = [[i for i, (words, _) in enumerate(world) if said <= words] for said in things]
    return [
        chosen
        for chosen in itertools.product(*fitting)
        if len(set(chosen)) == len(chosen)
        and all(holds(k, world[chosen[a]][1], world[chosen[b]][1]) for a, k, b in facts)
    ]


def recall_at_1(scores: np.ndarray, right: np.ndarray) -> float:
    """R@1 of score rows [Q,N] in percent; a tie counts as the chance to draw a right one."""
    best = scores == scores.max(axis=1, keepdims=True)
    return 100 * float(((best & right).sum(axis=1) / best.sum(axis=1)).mean())


def test_record_has_the_promised_keys_shapes_and_types(source, records):
    for record in records[:40]:
        types = {
            key: (value.dtype.name, value.ndim)
            for key, value in record.items()
            if key not in ("file_name", "captions")
        }
        assert types == {
            "image_id": ("int64", 0),
            "index": ("int64", 0),
            "size": ("int32", 1),
            "regions": ("float16", 2),
            "boxes": ("float32", 2),
            "object_labels": ("int32", 1),
            "relations": ("int32", 2),
            "relation_scores": ("float32", 1),
            "links": ("int32", 2),
        }
        assert set(record) == {*types, "file_name", "captions"}
        count = len(record["object_labels"])
        assert count == 12
        assert record["regions"].shape == (count, source.feature_width)
        assert record["boxes"].shape == (count, 4)
        assert (record["boxes"] >= 0).all() and (record["boxes"] <= 1).all()
        assert (record["boxes"][:, 2:] > record["boxes"][:, :2]).all()
        assert np.isfinite(record["regions"]).all()
        assert len(set(record["captions"])) == 5
        assert len(record["relation_scores"]) == len(record["relations"]) > 0
    assert [int(record["index"]) for record in records] == list(range(SCENES))
    assert source.labels == ["background", *SHAPES]
    assert source.splits() == ["train", "test"] and len(source.contents("test").image_ids) == SCENES
    ids = {int(r["image_id"]) for r in itertools.chain(records, examples(source, "train"))}
    assert len(ids) == SCENES + 20 and max(ids) < 2**31


def test_records_depend_on_seed_split_and_index_alone(source, records):
    longer = list(examples(SyntheticScenes({"other": 3, "train": 9, "test": 30}), "test"))
    for one, other in zip(longer, records, strict=False):
        for key in one.keys() - {"image_id"}:  # the splits are numbered in the order given
            np.testing.assert_array_equal(one[key], other[key])
    reseeded = SyntheticScenes({"test": 30}, seed=1)
    for changed in (examples(reseeded, "test"), examples(source, "train")):
        for one, other in zip(changed, records, strict=False):
            assert one["captions"] != other["captions"]
            assert not np.array_equal(one["boxes"], other["boxes"])


def test_things_are_at_any_position_among_the_regions(records):
    share = np.mean([record["object_labels"] > 0 for record in records], axis=0)
    assert share.min() > 0.2 and share.max() < 0.4  # 3.5 of 12 on average


def test_distractors_do_not_cover_a_thing(records):
    for record in records[:100]:
        boxes, is_thing = record["boxes"], record["object_labels"] > 0
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        shared = np.maximum(high - low, 0).prod(axis=-1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
        overlap = shared / (area[:, None] + area[None] - shared)
        assert overlap[is_thing][:, ~is_thing].max() < 0.5


def test_relations_agree_with_the_boxes(source, records):
    for record in records:
        stated = {(i, source.predicates[k], j) for i, k, j in record["relations"].tolist()}
        assert len(stated) == len(record["relations"])
        things = np.flatnonzero(record["object_labels"]).tolist()
        boxes = record["boxes"]
        for i, j in itertools.permutations(things, 2):
            said = {k for subject, k, object_ in stated if (subject, object_) == (i, j)}
            assert said <= {k for k in source.predicates if holds(k, boxes[i], boxes[j])}
            assert said >= {k for k in source.predicates if holds(k, boxes[i], boxes[j], 1.41)}
        assert {i for i, _, _ in stated} <= set(things)


def test_captions_are_true_and_of_moderate_length(records, worlds):
    for record, world in zip(records, worlds, strict=True):
        for caption in record["captions"]:
            assert caption == caption.lower() and 6 <= len(caption.split()) <= 22
            assert meanings(parse(caption), world), caption


def test_all_predicates_and_words_are_used(source, records):
    captions = [caption for record in records for caption in record["captions"]]
    said = {k for caption in captions for _, k, _ in parse(caption)[1]}
    assert said == set(source.predicates)
    assert {word for caption in captions for word in caption.split()} >= DESCRIBING


def test_links_are_the_describing_words_and_their_regions(source, records, worlds):
    for record, world in zip(records, worlds, strict=True):
        for number, caption in enumerate(record["captions"]):
            links = record["links"][record["links"][:, 0] == number, 1:].tolist()
            words = [(m.group(), m.start(), m.end()) for m in re.finditer(r"\S+", caption)]
            described = [(start, end) for word, start, end in words if word in DESCRIBING]
            assert [(start, end) for start, end, _ in links] == described
            parsed = parse(caption)
            (reading,) = meanings(parsed, world)  # no second way to read it
            regions = [region for _, _, region in links]
            for said, thing in zip(parsed[0], reading, strict=True):
                for region in regions[: len(said)]:
                    np.testing.assert_array_equal(record["boxes"][region], world[thing][1])
                    assert source.labels[record["object_labels"][region]] in world[thing][0]
                regions = regions[len(said) :]


def colour_shares(crop: np.ndarray) -> dict[str, float]:
    """Which share of the painted pixels [N,3] (0..255) of a crop has which colour."""
    found = dict.fromkeys(COLOURS, 0)
    for red, green, blue in crop.tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        if value < 0.42 and saturation < 0.4:
            found["black"] += 1
        elif saturation > 0.4:
            turn = 360 * hue
            limits = [(20, "red"), (70, "yellow"), (180, "green"), (250, "blue"), (320, "purple")]
            found[next((name for limit, name in limits if turn < limit), "red")] += 1
    return {name: count / max(sum(found.values()), 1) for name, count in found.items()}


def test_linked_regions_have_the_colour_in_their_pixels(source, records):
    for record in records[:60]:
        pixels = np.asarray(source.image("test", int(record["index"])))
        touching = {
            i for i, k, _ in record["relations"].tolist() if k >= source.predicates.index("inside")
        }
        linked = {
            (record["captions"][number][start:end], region)
            for number, start, end, region in record["links"].tolist()
        }
        for colour, region in linked:
            if colour not in COLOURS:
                continue
            x1, y1, x2, y2 = (record["boxes"][region] * pixels.shape[0]).astype(int)
            shares = colour_shares(pixels[y1:y2, x1:x2].reshape(-1, 3)[::2])
            # Inside another thing, the corners of a small star's box belong to that.
            assert shares[colour] > (0.12 if region in touching else 0.85), (colour, shares)


def test_a_bag_of_words_does_not_find_the_scene(records, worlds):
    """Even the exact bag of a scene, which no encoder sees, leaves its near-twins tied."""
    captions = [parse(caption)[0] for record in records for caption in record["captions"]]
    vocabulary = sorted(DESCRIBING - PLAIN_WORDS.keys())

    def bag(things: list[set[str]]) -> list[int]:
        return [sum(word in words for words in things) for word in vocabulary]

    scenes = np.array([bag([words for words, _ in world]) for world in worlds])
    said = np.array([bag(things) for things in captions])
    matched = np.stack([np.minimum(said, scene).sum(axis=1) for scene in scenes])
    # Nothing false first, then as much as possible true.
    scores = matched - 100 * (said.sum(axis=1) - matched)
    right = np.arange(len(scenes))[:, None] == np.arange(len(said))[None] // 5
    assert recall_at_1(scores, right) <= 40
    assert recall_at_1(scores.T, right.T) <= 40


def test_whoever_reads_the_captions_finds_the_scene(records, worlds):
    captions = [parse(caption) for record in records for caption in record["captions"]]
    scores = np.array([[bool(meanings(c, world)) for c in captions] for world in worlds])
    right = np.arange(len(worlds))[:, None] == np.arange(len(captions))[None] // 5
    assert recall_at_1(scores.T, right.T) >= 90
    assert recall_at_1(scores, right) >= 85
    groups = right.reshape(-1, 4, len(captions)).any(axis=1).repeat(4, axis=0)
    assert not (scores & groups & ~right).any()  # no caption is true of a near-twin


def test_near_twins_hold_the_same_bag(worlds):
    for first in range(0, SCENES, 4):
        bags = [sorted(w for words, _ in world for w in words) for world in worlds[first:][:4]]
        assert all(bag == bags[0] for bag in bags)


def linear_probe(features: np.ndarray, classes: np.ndarray) -> float:
    """Accuracy of ridge regression on one-hot targets: two thirds to fit, the rest to test."""
    cut = 2 * len(features) // 3
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    fit, targets = inputs[:cut], np.eye(classes.max() + 1)[classes[:cut]]
    weights = np.linalg.solve(fit.T @ fit + 3.0 * np.eye(fit.shape[1]), fit.T @ targets)
    return float(((inputs[cut:] @ weights).argmax(axis=1) == classes[cut:]).mean())


def test_features_tell_the_words_apart(records, worlds):
    features, words = [], []
    for record, world in zip(records, worlds, strict=True):
        for said, box in world:
            region = int(np.abs(record["boxes"] - box).sum(axis=1).argmin())
            features.append(np.concatenate([record["regions"][region], record["boxes"][region]]))
            words.append(said)
    features = np.array(features, np.float64)
    # The width and height of a box, which a network has from its corners.
    features = np.concatenate([features, features[:, -2:] - features[:, -4:-2]], axis=1)

    def accuracy(names: list[str]) -> float:
        classes = [next(i for i, name in enumerate(names) if name in said) for said in words]
        return linear_probe(features, np.array(classes))

    assert accuracy(COLOURS) > 0.95
    assert accuracy(SHAPES) > 0.85
    assert accuracy(TEXTURES) > 0.85
    assert accuracy(SIZES) > 0.98


def test_features_are_about_standard(records):
    features = np.stack([record["regions"] for record in records]).astype(np.float32)
    assert abs(features.mean()) < 0.1
    assert 0.8 < features.std() < 1.2
    assert np.abs(features).max() < 20


def test_pictures_are_saved_and_drawn_again_alike(tmp_path):
    source = SyntheticScenes({"val": 5}, seed=3, name="tiny", images_dir=str(tmp_path / "png"))
    for record in examples(source, "val"):
        with Image.open(tmp_path / "png" / record["file_name"]) as saved:
            again = np.asarray(source.image("val", int(record["index"])))
            np.testing.assert_array_equal(np.asarray(saved), again)
            assert saved.size == tuple(record["size"])


def test_mistakes_name_the_remedy(source):
    with pytest.raises(DataError, match=r"no split 'dev'.*'train', 'test'"):
        source.contents("dev")
    with pytest.raises(DataError, match=r"index=500 .*0 to 499"):
        source.image("test", SCENES)
    with pytest.raises(DataError, match=r"index=-1 "):
        source.image("test", -1)
    with pytest.raises(DataError, match=r"sizes\['a'\]=-1"):
        SyntheticScenes({"a": -1})
    with pytest.raises(DataError, match="seed=-1"):
        SyntheticScenes({"a": 1}, seed=-1)


def test_generation_is_fast():
    source = SyntheticScenes({"train": 100})
    start = time.process_time()
    assert sum(1 for _ in examples(source, "train")) == 100
    assert (time.process_time() - start) / 100 < 0.02  # seconds an example; usually 0.004
