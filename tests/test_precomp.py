"""SCAN's file layout: both conventions, optional files, and one clear line for every mistake."""

import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline import build
from data_pipeline.errors import DataError
from data_pipeline.region_captions import open_dataset
from data_pipeline.sources import ScanPrecomp, examples

IMAGES, REGIONS, WIDTH, CAPTIONS = 4, 3, 2, 5


def write_split(directory, split="train", repeated=False):
    """IMAGES images with every optional file; the arrays are returned."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(IMAGES, REGIONS, WIDTH)).astype(np.float32)
    corners = rng.uniform([0, 0], [50, 40], size=(IMAGES, REGIONS, 2))
    boxes = np.concatenate([corners, corners + 20], axis=-1).astype(np.float32)
    sizes = np.tile(np.array([[100, 80]], np.int32), (IMAGES, 1))
    labels = rng.integers(3, size=(IMAGES, REGIONS)).astype(np.int8)
    repeats = CAPTIONS if repeated else 1
    arrays = {"ims": features, "boxes": boxes, "img_sizes": sizes, "labels": labels}
    for name, array in arrays.items():
        np.save(directory / f"{split}_{name}.npy", np.repeat(array, repeats, axis=0))
    captions = [f"image {i} caption {k} ." for i in range(IMAGES) for k in range(CAPTIONS)]
    lines = {
        "caps.txt": captions,
        "ids.txt": [str(10 + i) for i in range(IMAGES) for _ in range(repeats)],
        "filenames.txt": [f"{i}.jpg" for i in range(IMAGES)],
        "scene_graphs.jsonl": [
            json.dumps({"relations": [[0, "on", 1, 0.5], [2, f"{split} by", 0, 0.25]]})
        ]
        * IMAGES,
    }
    for name, values in lines.items():
        (directory / f"{split}_{name}").write_text("\n".join(values) + "\n")
    (directory / "labels.txt").write_text("person\ndog\nball\n")
    return arrays | {"captions": captions}


@pytest.fixture
def directory(tmp_path):
    write_split(tmp_path)
    return tmp_path


@pytest.mark.parametrize("repeated", [False, True])
def test_both_conventions_of_rows_give_the_same_records(tmp_path, repeated):
    expected = write_split(tmp_path, repeated=repeated)
    source = ScanPrecomp(tmp_path, name="tiny")
    assert (source.splits(), len(source.contents("train").image_ids), source.feature_width) == (
        *(["train"], IMAGES, WIDTH),
    )
    assert source.labels == ["person", "dog", "ball"]
    assert source.predicates == ["on", "train by"]
    records = list(examples(source, "train"))
    assert len(records) == IMAGES
    for i, record in enumerate(records):
        assert (record["image_id"], record["index"], record["file_name"]) == (10 + i, i, f"{i}.jpg")
        assert record["captions"] == expected["captions"][5 * i : 5 * i + 5]
        assert record["regions"].dtype == np.float16
        np.testing.assert_array_equal(record["regions"], expected["ims"][i].astype(np.float16))
        np.testing.assert_allclose(
            record["boxes"], expected["boxes"][i] / [100, 80, 100, 80], rtol=1e-6
        )
        np.testing.assert_array_equal(record["object_labels"], expected["labels"][i])
        np.testing.assert_array_equal(record["relations"], [[0, 0, 1], [2, 1, 0]])
        np.testing.assert_array_equal(record["relation_scores"], [0.5, 0.25])
        np.testing.assert_array_equal(record["size"], [100, 80])
        assert record["links"].shape == (0, 4)


def test_only_features_and_captions_are_required(tmp_path):
    (tmp_path / "precomp").mkdir()
    write_split(tmp_path / "precomp")
    for path in (tmp_path / "precomp").iterdir():
        if path.name not in ("train_ims.npy", "train_caps.txt"):
            path.unlink()
    source = ScanPrecomp(tmp_path)
    assert (source.name, source.labels, source.predicates) == (tmp_path.name, [], [])
    records = list(examples(source, "train"))
    assert [int(record["image_id"]) for record in records] == [0, 1, 2, 3]
    record = records[0]
    np.testing.assert_array_equal(record["boxes"], np.zeros((REGIONS, 4), np.float32))
    np.testing.assert_array_equal(record["size"], [0, 0])
    shapes = {key: record[key].shape for key in ("object_labels", "relations", "relation_scores")}
    assert shapes == {"object_labels": (0,), "relations": (0, 3), "relation_scores": (0,)}
    assert record["file_name"] == ""


def test_ids_may_come_one_a_caption(directory):
    ids = "\n".join(str(7 * i) for i in range(IMAGES) for _ in range(CAPTIONS))
    (directory / "train_ids.txt").write_text(ids)
    records = examples(ScanPrecomp(directory), "train")
    assert [int(record["image_id"]) for record in records] == [0, 7, 14, 21]


def test_splits_come_in_the_usual_order_and_predicates_from_all(directory):
    for split in ("test", "dev", "minival"):
        write_split(directory, split)
    source = ScanPrecomp(directory)
    assert source.splits() == ["train", "dev", "test", "minival"]
    assert source.predicates == ["dev by", "minival by", "on", "test by", "train by"]
    assert ScanPrecomp(directory, splits=["dev"]).predicates == ["dev by", "on"]


def test_relations_are_sorted_by_confidence(directory):
    graph = [[0, "by", 1, 0.5], [1, "on", 2], [2, "on", 0, 0.75], [2, "by", 1, 0.5]]
    lines = [graph, [], graph[::-1], graph[:1]]
    text = "\n".join(json.dumps({"relations": line}) for line in lines)
    (directory / "train_scene_graphs.jsonl").write_text(text)
    records = list(examples(ScanPrecomp(directory), "train"))
    # Equal ones stay in their order; a confidence not given is 1.
    best = [[1, 1, 2], [2, 1, 0]]
    expected = [[*best, [0, 0, 1], [2, 0, 1]], [], [*best, [2, 0, 1], [0, 0, 1]], [[0, 0, 1]]]
    assert [record["relations"].tolist() for record in records] == expected
    scores = [[1, 0.75, 0.5, 0.5], [], [1, 0.75, 0.5, 0.5], [0.5]]
    assert [record["relation_scores"].tolist() for record in records] == scores


def test_an_image_whose_boxes_are_in_0_to_1_among_pixels_is_named(directory):
    boxes = np.load(directory / "train_boxes.npy")
    boxes[2] /= np.tile([100, 80], 2)
    np.save(directory / "train_boxes.npy", boxes)
    source = ScanPrecomp(directory)
    assert source.read("train", 1)["boxes"].max() > 0.2
    with pytest.raises(DataError, match=r"row 2: boxes go up to 0\.\d+ in an image of 100 x 80"):
        source.read("train", 2)


def test_boxes_a_pixel_outside_are_clipped(directory):
    boxes = np.load(directory / "train_boxes.npy")
    boxes[1, 2] = [-0.5, -1, 100.9, 81]
    np.save(directory / "train_boxes.npy", boxes)
    record = list(examples(ScanPrecomp(directory), "train"))[1]
    np.testing.assert_array_equal(record["boxes"][2], [0, 0, 1, 1])


def edit_array(name, change):
    def edit(directory):
        array = np.load(directory / f"train_{name}.npy")
        changed = change(array)
        np.save(directory / f"train_{name}.npy", array if changed is None else changed)

    return edit


def edit_text(name, text):
    def edit(directory):
        path = directory / f"train_{name}"
        path.write_bytes(text if isinstance(text, bytes) else text(path.read_bytes()))

    return edit


def put(index, value):
    def change(array):
        array[index] = value

    return change


MISTAKES = {
    "no features": (lambda d: (d / "train_ims.npy").unlink(), "no SPLIT_ims.npy"),
    "no captions": (lambda d: (d / "train_caps.txt").unlink(), "train_caps.txt is missing"),
    "truncated features": (
        edit_text("ims.npy", lambda data: data[:-8]),
        "train_ims.npy is not a whole",
    ),
    "rank": (edit_array("ims", lambda a: a[:, 0]), "float32[4, 2]"),
    "integers": (edit_array("ims", lambda a: a.astype(int)), "int64[4, 3, 2]"),
    "nan": (edit_array("ims", put((2, 1, 0), np.nan)), "split train, row 2, region 1"),
    "infinite": (edit_array("ims", put((0, 2, 1), np.inf)), "row 0, region 2: feature value inf"),
    "too large": (edit_array("ims", put((0, 0, 0), 7e4)), "feature value 70000.0"),
    "captions": (edit_text("caps.txt", lambda d: d + b"one more\n"), "21 captions"),
    "empty caption": (
        edit_text("caps.txt", lambda d: d.replace(b"image 1 caption 1 .", b"  ")),
        "train_caps.txt line 7 is empty",
    ),
    "not UTF-8": (edit_text("caps.txt", lambda d: d.replace(b"0 .", b"\xff", 1)), "line 1 is not"),
    "id twice": (edit_text("ids.txt", b"1\n2\n1\n4\n"), "line 3: id 1 is already that of image 0"),
    "too few ids": (edit_text("ids.txt", b"1\n2\n3\n"), "3 lines for 4 images"),
    "ids out of step": (
        edit_text("ids.txt", b"1\n" * 6 + b"2\n" * 4 + b"3\n" * 5 + b"4\n" * 5),
        "line 6: id 1",
    ),
    "id in letters": (edit_text("ids.txt", b"a.jpg\n2\n3\n4\n"), "id 'a.jpg' is not an integer"),
    "id of many digits": (
        edit_text("ids.txt", b"1\n2\n99999999999999999999\n4\n"),
        "train_ids.txt line 3: id '99999999999999999999' is not in 0 .. 2^31 - 1",
    ),
    "id of thousands of digits": (
        edit_text("ids.txt", b"1\n2\n" + b"9" * 5000 + b"\n4\n"),
        "train_ids.txt line 3: id '999999",
    ),
    "id below 0": (edit_text("ids.txt", b"1\n2\n-3\n4\n"), "line 3: id '-3' is not in 0 .."),
    "box outside": (edit_array("boxes", put((3, 1, 2), 102)), "row 3, region 1: box"),
    "box turned": (edit_array("boxes", put((1, 0, 2), 0)), "row 1, region 0: box"),
    "box rows": (edit_array("boxes", lambda a: a[:3]), "has 3 rows and train_ims.npy has 4"),
    "box shape": (edit_array("boxes", lambda a: a[:, :2]), "shape [4, 2, 4]"),
    "position blocks": (
        edit_array("boxes", lambda a: np.zeros((IMAGES, REGIONS, 30))),
        "shape [4, 3, 30]; it must be [images, 3, 4]; PFAN's position blocks",
    ),
    "two files of boxes": (
        lambda d: np.save(d / "train_ims_bbx.npy", np.load(d / "train_boxes.npy")),
        "train_boxes.npy and train_ims_bbx.npy are both there; keep the one",
    ),
    "no sizes": (lambda d: (d / "train_img_sizes.npy").unlink(), "no train_img_sizes.npy"),
    "size zero": (edit_array("img_sizes", put((2, 0), 0)), "row 2: image size [0, 80]"),
    "size is no number": (
        edit_array("img_sizes", lambda a: np.where(a == 80, np.nan, a)),
        "row 0: image size [100.0, nan]; correct the image's size",
    ),
    "size is too large": (
        edit_array("img_sizes", lambda a: a * 1e12),
        "row 0: image size [100000000000000.0, 80000000000000.0]; correct",
    ),
    "label": (edit_array("labels", put((1, 1), 3)), "row 1: object label 3"),
    "label far away": (
        edit_array("labels", lambda a: a.astype(np.int64) + 2**32),
        "row 0: object label 42949672",
    ),
    "labels of floats": (
        edit_array("labels", lambda a: a.astype(np.float32)),
        "train_labels.npy is an array of float32; it must be one of integers",
    ),
    "labels of text": (edit_array("labels", lambda a: a.astype("U")), "it must be one of integers"),
    "boxes of text": (
        edit_array("boxes", lambda a: a.astype("U")),
        "train_boxes.npy is an array of <U32; it must be one of numbers",
    ),
    "boxes of records": (
        edit_array("boxes", lambda a: a.astype([("x", "f4")])),
        "train_boxes.npy is an array of [('x', '<f4')]; it must be one of numbers",
    ),
    "sizes of text": (
        edit_array("img_sizes", lambda a: a.astype("U")),
        "train_img_sizes.npy is an array of <U11; it must be one of numbers",
    ),
    "file names": (edit_text("filenames.txt", b"a\n"), "has 1 rows"),
    "file names elsewhere": (
        edit_text("filenames.txt", b"a.jpg\nb.jpg\n../c.jpg\nd.jpg\n"),
        "train_filenames.txt line 3: file name '../c.jpg' leads out of its directory",
    ),
    "graph": (edit_text("scene_graphs.jsonl", lambda d: b"{}" + d[d.index(b"\n") :]), "line 1 is"),
    "relation": (
        edit_text("scene_graphs.jsonl", lambda d: d.replace(b"[0, ", b"[9, ", 1)),
        "train_scene_graphs.jsonl line 1: relation [9, 'on', 1, 0.5] names an object that is not",
    ),
    "relation without predicate": (
        edit_text("scene_graphs.jsonl", lambda d: d.replace(b'"on"', b"4", 1)),
        "train_scene_graphs.jsonl line 1",
    ),
    "region without end": (
        edit_text("scene_graphs.jsonl", lambda d: d.replace(b"[0, ", b"[Infinity, ", 1)),
        "train_scene_graphs.jsonl line 1",
    ),
    "confidence": (
        edit_text("scene_graphs.jsonl", lambda d: d.replace(b"0.25", b"NaN", 1)),
        "train_scene_graphs.jsonl line 1: relation 2 'train by' 0 has confidence nan",
    ),
    "confidence too large": (
        edit_text("scene_graphs.jsonl", lambda d: d.replace(b"0.25", b"1e39", 1)),
        "relation 2 'train by' 0 has confidence 1e+39, which is not a finite float32",
    ),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_one_line(directory, mistake):
    damage, expected = MISTAKES[mistake]
    damage(directory)
    with pytest.raises(DataError) as caught:
        list(examples(ScanPrecomp(directory), "train"))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_mark_at_the_start_of_a_file_is_no_text(directory):
    for name in ("caps", "ids", "filenames"):
        path = directory / f"train_{name}.txt"
        path.write_text(path.read_text(), encoding="utf-8-sig")
    (directory / "labels.txt").write_text("person\ndog\nball\n", encoding="utf-8-sig")
    source = ScanPrecomp(directory)
    record = next(examples(source, "train"))
    assert record["captions"][0] == "image 0 caption 0 ." and record["file_name"] == "0.jpg"
    assert record["image_id"] == 10 and source.labels[0] == "person"


@pytest.mark.parametrize("name", ["ims.npy", "caps.txt", "ims_size.npy", "scene_graphs.jsonl"])
def test_a_pipe_is_not_waited_for(directory, name):
    replaced = name.replace("ims_size", "img_sizes")  # which would be read instead
    (directory / f"train_{replaced}").unlink()
    os.mkfifo(directory / f"train_{name}")
    with pytest.raises(DataError, match=f"train_{name} is no regular file"):
        list(examples(ScanPrecomp(directory), "train"))


def named_graphs(name):
    """Graphs of all images but 1, called name(i), in another order than the images."""
    graphs = {2: [[2, "at", 0, 0.5]], 0: [[0, "at", 1, 0.5]], 3: [[0, "at", 1, 0.5]]}
    lines = [json.dumps({"id": name(i), "relations": graph}) for i, graph in graphs.items()]
    return "\n".join(lines)


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("name", [lambda i: 10 + i, lambda i: f"{i}.jpg", str])
def test_graphs_with_ids_belong_to_their_images(directory, name, common):
    path = directory / ("all.jsonl" if common else "train_scene_graphs.jsonl")
    (directory / "train_scene_graphs.jsonl").unlink()
    path.write_text(named_graphs(name))
    source = ScanPrecomp(directory, scene_graphs=path if common else None)
    assert source.predicates == ["at"]
    found = [record["relations"].tolist() for record in examples(source, "train")]
    assert found == [[[0, 0, 1]], [], [[2, 0, 0]], [[0, 0, 1]]]


def test_graphs_of_other_images_are_refused(directory):
    path = directory / "train_scene_graphs.jsonl"
    path.write_text(named_graphs(lambda i: f"other{i}.jpg"))
    with pytest.raises(DataError, match=r"none of the 3 scene graphs is .*; add SPLIT_ids.txt"):
        ScanPrecomp(directory).read("train", 0)
    # Without the file images have numbers, which are nobody's ids.
    path.write_text(named_graphs(lambda i: i))
    (directory / "train_filenames.txt").unlink()
    (directory / "train_ids.txt").unlink()
    with pytest.raises(DataError, match="none of the 3 scene graphs"):
        ScanPrecomp(directory).read("train", 0)


def test_two_files_of_graphs_are_refused(directory):
    (directory / "all.jsonl").write_text(named_graphs(lambda i: 10 + i))
    with pytest.raises(DataError, match=r"train_scene_graphs.jsonl and --scene-graphs .*all.jsonl"):
        ScanPrecomp(directory, scene_graphs=directory / "all.jsonl").read("train", 0)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("ids", [False, True])
def test_objects_of_graphs_are_joined_with_regions_by_boxes(tmp_path, repeated, ids):
    expected = write_split(tmp_path, repeated=repeated)
    (tmp_path / "train_labels.npy").unlink()
    lines = []
    for i in range(IMAGES):
        boxes = expected["boxes"][i, ::-1].tolist()
        line = {"boxes": boxes, "labels": ["c", "b", "a"], "relations": [[0, "on", 2, 0.5]]}
        lines += [line | ({"id": 10 + i} if ids else {})] * (CAPTIONS if repeated else 1)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "train_scene_graphs.jsonl").write_text(text)
    source = ScanPrecomp(tmp_path)
    assert source.labels == ["a", "b", "c"]
    for record in examples(source, "train"):
        assert record["relations"].tolist() == [[2, 0, 0]]
        assert record["object_labels"].tolist() == [0, 1, 2]


def test_labels_of_regions_come_before_those_of_graphs(directory):
    line = {"labels": ["x", "y", "z"], "relations": []}
    (directory / "train_scene_graphs.jsonl").write_text(f"{json.dumps(line)}\n" * IMAGES)
    source = ScanPrecomp(directory)
    assert source.labels == ["person", "dog", "ball"]
    expected = np.load(directory / "train_labels.npy")[1]
    np.testing.assert_array_equal(source.read("train", 1)["object_labels"], expected)


def test_graphs_without_ids_are_one_an_image(directory):
    edit_text("scene_graphs.jsonl", lambda d: d[: d.index(b"\n") + 1])(directory)
    with pytest.raises(DataError, match=r"scene_graphs.jsonl has 1 rows and train_ims.npy has 4"):
        ScanPrecomp(directory).read("train", 0)


@pytest.mark.parametrize("repeated", [False, True])
def test_boxes_and_sizes_under_the_names_of_gsmn(tmp_path, repeated):
    expected = write_split(tmp_path, repeated=repeated)
    (tmp_path / "train_boxes.npy").rename(tmp_path / "train_ims_bbx.npy")
    sizes = np.load(tmp_path / "train_img_sizes.npy")
    (tmp_path / "train_img_sizes.npy").unlink()
    rows = [{"image_w": int(w), "image_h": int(h)} for w, h in sizes]
    np.save(tmp_path / "train_ims_size.npy", np.array(rows, object), allow_pickle=True)
    for i, record in enumerate(examples(ScanPrecomp(tmp_path), "train")):
        np.testing.assert_allclose(
            record["boxes"], expected["boxes"][i] / [100, 80, 100, 80], rtol=1e-6
        )
        np.testing.assert_array_equal(record["size"], [100, 80])


def test_sizes_of_another_form_are_refused(directory):
    (directory / "train_img_sizes.npy").unlink()
    rows = np.array([{"width": 3}] * IMAGES, object)
    np.save(directory / "train_ims_size.npy", rows, allow_pickle=True)
    with pytest.raises(DataError, match="not an array of dicts with image_w and image_h"):
        ScanPrecomp(directory).read("train", 0)


def test_boxes_in_0_to_1_need_no_sizes(directory):
    boxes = np.load(directory / "train_boxes.npy") / np.array([100, 80, 100, 80], np.float32)
    np.save(directory / "train_boxes.npy", boxes)
    (directory / "train_img_sizes.npy").unlink()
    records = examples(ScanPrecomp(directory), "train")
    np.testing.assert_array_equal([record["boxes"] for record in records], boxes)


def test_repeated_rows_are_found_where_the_first_is_not_a_number(tmp_path):
    write_split(tmp_path, repeated=True)
    edit_array("ims", put((slice(0, CAPTIONS), 0, 0), np.nan))(tmp_path)
    source = ScanPrecomp(tmp_path)
    assert len(source.contents("train").image_ids) == IMAGES
    with pytest.raises(DataError, match="row 0, region 0: feature value nan"):
        source.read("train", 0)
    assert source.read("train", 1)["file_name"] == "1.jpg"


@pytest.mark.parametrize(("highest", "well"), [(1.0000001, True), (1.5, False)])
def test_boxes_that_are_nearly_in_0_to_1(directory, highest, well):
    boxes = np.load(directory / "train_boxes.npy") / np.array([100, 80, 100, 80], np.float32)
    boxes[0, 0, 2] = highest
    np.save(directory / "train_boxes.npy", boxes)
    if well:
        found = ScanPrecomp(directory).read("train", 1)["boxes"]
        np.testing.assert_array_equal(found, boxes[1])
    else:
        with pytest.raises(DataError, match="goes up to 1.5: that is neither 0..1 nor pixels"):
            ScanPrecomp(directory).read("train", 1)


@pytest.mark.parametrize(("lowest", "well"), [(-0.0005, True), (-0.002, False), (-0.9, False)])
def test_boxes_in_0_to_1_do_not_begin_far_outside(directory, lowest, well):
    boxes = np.load(directory / "train_boxes.npy") / np.array([100, 80, 100, 80], np.float32)
    boxes[0, 1, 1] = lowest
    np.save(directory / "train_boxes.npy", boxes)
    source = ScanPrecomp(directory)
    np.testing.assert_array_equal(source.read("train", 1)["boxes"], boxes[1])
    if well:
        np.testing.assert_array_equal(source.read("train", 0)["boxes"], boxes[0].clip(0))
    else:
        with pytest.raises(DataError, match="row 0, region 1: box .* in 0..1, as the others are"):
            source.read("train", 0)


def test_rows_repeated_only_in_part_are_refused(tmp_path):
    write_split(tmp_path, repeated=True)
    edit_array("ims", put((12, 0, 0), 99))(tmp_path)
    with pytest.raises(DataError, match="row 10: this and the next 4 rows differ"):
        list(examples(ScanPrecomp(tmp_path), "train"))


def test_widths_must_agree_between_splits(directory):
    write_split(directory, "dev")
    np.save(directory / "dev_ims.npy", np.zeros((IMAGES, REGIONS, WIDTH + 1), np.float32))
    with pytest.raises(DataError, match="'train': 2, 'dev': 3"):
        _ = ScanPrecomp(directory).feature_width


@pytest.mark.parametrize("repeated", [False, True])
def test_there_and_back_through_the_command_line(tmp_path, repeated):
    expected = write_split(tmp_path, repeated=repeated)
    words = ["scan", str(tmp_path), "--name", "tiny", "--out", str(tmp_path / "data")]
    assert build.main(words) == 0
    builder = open_dataset(tmp_path / "data", "tiny")
    records = list(builder.as_dataset(split="train").as_numpy_iterator())
    assert [int(record["image_id"]) for record in records] == [10, 11, 12, 13]
    captions = [text.decode() for record in records for text in record["captions"]]
    assert captions == expected["captions"]
    for i, record in enumerate(records):
        np.testing.assert_array_equal(record["regions"], expected["ims"][i].astype(np.float16))
        scale = np.array([100, 80, 100, 80])
        np.testing.assert_allclose(record["boxes"], expected["boxes"][i] / scale, rtol=1e-6)
        np.testing.assert_array_equal(record["object_labels"], expected["labels"][i])


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_bytes_bring_a_data_error_or_records(directory, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in directory.iterdir())))
    path = directory / name
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, min(len(whole), start + 30)))
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=20)) + whole[stop:])
    try:
        for record in examples(ScanPrecomp(directory), "train"):
            assert np.isfinite(record["regions"]).all() and record["captions"]
            assert ((record["boxes"] >= 0) & (record["boxes"] <= 1)).all()
    except DataError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        path.write_bytes(whole)


def test_no_pickle_is_loaded(directory):
    np.save(directory / "train_ims.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(DataError, match="not a whole"):
        ScanPrecomp(directory)
