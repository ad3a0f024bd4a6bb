"""Searching an index: every score against loops over what is stored, at every size and stage."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from data_pipeline.tokenizer import WordTokenizer
from tests.tiny_models import PREDICATES, REGIONS, WIDTH, WORDS, build, tiny_config
from xmodal_jax.errors import UserError
from xmodal_jax.export import ExportedModel
from xmodal_jax.models.batch import encoder_spec
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval import first_stage, fitting, scan
from xmodal_jax.retrieval.answers import Query
from xmodal_jax.retrieval.fitting import fit_first_stage
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Item, Part
from xmodal_jax.retrieval.table import Table
from xmodal_jax.retrieval.words import matched_words

VOCABULARY = [f"word{n}" for n in range(26)]
COUNT = 37
SENTENCE = "word3 word7, word1"


def exported(variant, seed=0, **changes):
    """A model of random parameters."""
    config = tiny_config(variant, **changes)
    model = build(config)
    spec = encoder_spec(1, REGIONS, WIDTH, WORDS, config.data.max_relations)
    params = jax.jit(model.init)(
        jax.random.key(seed), {k: np.zeros(x.shape, x.dtype) for k, x in spec.items()}
    )["params"]
    tokenizer = WordTokenizer(VOCABULARY)
    sizes = (WIDTH, REGIONS, WORDS, config.data.max_relations)
    return ExportedModel(model, params, tokenizer, *sizes, ("p",) * PREDICATES)


@pytest.fixture(scope="module")
def teran():
    return exported("teran")


def images(model, count=COUNT, start=0, seed=0):
    """A part of images with several numbers of regions."""
    rng = np.random.default_rng(seed)
    mask = np.arange(REGIONS) < rng.integers(2, REGIONS + 1, (count, 1))
    corners = rng.uniform(0, 0.5, (count, REGIONS, 2))
    boxes = np.concatenate([corners, corners + 0.25], -1) * mask[..., None]
    regions = rng.standard_normal((count, REGIONS, WIDTH)) * mask[..., None]
    encoded = model.encode_image(regions.astype(np.float32), boxes.astype(np.float32), mask)
    items = [Item(f"i{start + n}", fields={"third": str(n % 3)}) for n in range(count)]
    return Part(items, jax.tree.map(np.asarray, encoded), boxes)


def captions(model, texts):
    items = [Item(f"c{n}", text=text) for n, text in enumerate(texts)]
    return Part(items, jax.tree.map(np.asarray, model.encode_text(texts)))


def stored(part, row):
    """Tokens and pooled vector of an item as int8 keeps them, worked out one vector at a time."""
    out = []
    for x in (*part.embeddings.tokens[row], part.embeddings.pooled[row]):
        step = np.abs(x).max() / 127
        out.append(np.round(x / step) * step if step else x)
    valid = part.embeddings.mask[row]
    return np.array([x for x, keep in zip(out[:-1], valid, strict=True) if keep]), out[-1]


def loops(kind, mode, image, caption):
    """Score of (regions, pooled) with (words, pooled) by its definition."""
    if kind == "vector":
        return float(np.dot(image[1], caption[1]))
    best = [max(float(np.dot(r, w)) for r in image[0]) for w in caption[0]]
    if mode == "MrAVGw":
        return sum(best) / len(best)
    if mode == "MrLSEw":
        return float(np.log(sum(np.exp(b / 0.1) for b in best)))
    assert mode == "MwSr"
    return sum(max(float(np.dot(r, w)) for w in caption[0]) for r in image[0])


def plain(part, row):
    valid = part.embeddings.mask[row]
    return part.embeddings.tokens[row][valid], part.embeddings.pooled[row]


def check(answer, expected, k=10):
    """The hits are the k rows of the highest expected scores."""
    assert [hit.row for hit in answer.hits] == list(np.argsort(-expected, kind="stable")[:k])
    found = [hit.score for hit in answer.hits]
    np.testing.assert_allclose(found, np.sort(expected)[::-1][:k], atol=2e-5)


@pytest.mark.parametrize(
    ("variant", "mode", "changes"),
    [
        ("teran", "MrAVGw", {}),
        ("chan", "MrLSEw", {"model.similarity.mode": "MrLSEw"}),
        ("teran_mwsr", "MwSr", {}),
        ("vse", "", {}),
    ],
)
def test_scores_are_those_of_loops(variant, mode, changes, tmp_path):
    model = exported(variant, **changes)
    part = images(model)
    index = Index.build(tmp_path / "i", model, [part])
    asked = captions(model, [SENTENCE])
    query = plain(asked, 0)
    expected = np.array([loops(index.kind, mode, stored(part, n), query) for n in range(COUNT)])
    check(index.query_text(SENTENCE), expected)
    # The other way round: captions are stored, an image asks.
    texts = [f"word{n % 26} word{n % 7} word{n % 5}" for n in range(COUNT)]
    part = captions(model, texts)
    index = Index.build(tmp_path / "c", model, [part], side="captions")
    rng = np.random.default_rng(1)
    regions = rng.standard_normal((4, WIDTH)).astype(np.float32)
    boxes = np.tile(np.array([0.1, 0.1, 0.6, 0.7], np.float32), (4, 1))
    encoded = jax.tree.map(np.asarray, model.encode_image(regions[None], boxes[None]))
    image = plain(Part([], encoded), 0)
    expected = np.array([loops(index.kind, mode, image, stored(part, n)) for n in range(COUNT)])
    found = index.query_image(regions, boxes)
    # Captions that are equal are in any order.
    scores = [hit.score for hit in found.hits]
    np.testing.assert_allclose(scores, np.sort(expected)[::-1][:10], atol=2e-5)
    np.testing.assert_allclose(scores, expected[[hit.row for hit in found.hits]], atol=2e-5)


def test_a_pair_model_scores_what_its_vectors_name(tmp_path):
    model = exported("scan_t2i")
    part = images(model)
    index = Index.build(tmp_path / "i", model, [part], store="float16")
    about = fit_first_stage(index)
    assert about["name"] == "pooled" and index.store.first_stage == about
    half = dataclasses.replace(
        part.embeddings,
        tokens=part.embeddings.tokens.astype(np.float16).astype(np.float32),
        pooled=part.embeddings.pooled.astype(np.float16).astype(np.float32),
    )
    asked = captions(model, [SENTENCE])
    expected = model.scores(half, asked.embeddings)[:, 0]
    check(index.query_text(SENTENCE, stage="exact"), expected)
    check(index.query_text(SENTENCE, stage="staged", candidates=COUNT), expected)
    few = index.query_text(SENTENCE, 3, stage="staged", candidates=5)
    named = np.argsort(-(part.embeddings.pooled @ asked.embeddings.pooled[0]))[:5]
    order = sorted(named, key=lambda row: -expected[row])[:3]
    assert [hit.row for hit in few.hits] == order and few.stage == "staged"


def test_many_blocks_on_eight_devices_are_as_one(teran, tmp_path, monkeypatch):
    part = images(teran)
    whole = Index.build(tmp_path / "one", teran, [part]).query_text(SENTENCE, 7)
    monkeypatch.setattr(scan, "_BLOCK_BYTES", 1)
    index = Index.build(tmp_path / "many", teran, [part])
    assert jax.device_count() == 8
    answer = index.query_text(SENTENCE, 7)
    assert [(h.item.id, h.row) for h in answer.hits] == [(h.item.id, h.row) for h in whole.hits]
    monkeypatch.setattr(scan, "_RESIDENT_BYTES", 1)  # Read from the files for each query.
    again = Index.open(tmp_path / "many", teran).query_text(SENTENCE, 7)
    assert [h.row for h in again.hits] == [h.row for h in whole.hits]
    assert len(index.query_text(SENTENCE, 1000).hits) == COUNT


def test_it_grows_and_shrinks(teran, tmp_path):
    parts = [images(teran, 10, 10 * n, seed=n) for n in range(3)]
    index = Index.build(tmp_path / "i", teran, parts[:1])
    fit_first_stage(index)
    said = []
    assert index.add(parts[1:], said.append) == 20 and said == [10, 10]
    query = plain(captions(teran, [SENTENCE]), 0)
    expected = np.array(
        [loops("tokens", "MrAVGw", stored(p, n), query) for p in parts for n in range(10)]
    )
    for stage in ("exact", "staged"):
        check(index.query_text(SENTENCE, stage=stage), expected)
    best = index.query_text(SENTENCE).hits[0].item.id
    index.remove([best, "i20"])
    assert len(index) == 28 and best not in {item.id for item in index.items()}
    expected[[int(best[1:]), 20]] = -np.inf
    for opened in (index, Index.open(tmp_path / "i", teran, verify=True)):
        for stage in ("exact", "staged"):
            check(opened.query_text(SENTENCE, stage=stage), expected)
    third = np.array([n % 10 % 3 == 1 for n in range(30)])
    narrowed = np.where(third, expected, -np.inf)
    answer = index.query_text(SENTENCE, 5, where={"third": "1"})
    check(answer, narrowed, 5)
    assert index.query_text(SENTENCE, where={"third": "7"}).hits == []
    # Merged, it finds the same, and who has it open goes on.
    reader, kept = Index.open(tmp_path / "i", teran), np.flatnonzero(np.isfinite(expected))
    assert index.compact() > 0
    for opened in (index, Index.open(tmp_path / "i", teran, verify=True)):
        assert len(list(opened.store.shard_rows())) == 1
        for stage in ("exact", "staged"):
            check(opened.query_text(SENTENCE, stage=stage), expected[kept])
    check(reader.query_text(SENTENCE, stage="staged"), expected)
    assert reader.boxes(int(kept[8])).tolist() == index.boxes(8).tolist()
    # An id that was removed may come again.
    again = dataclasses.replace(parts[2], items=[Item("i20")] + [Item(f"n{n}") for n in range(9)])
    index.add([again])
    assert len(index) == 38 and index.row("i20") == 28


def test_a_search_takes_the_first_stage_while_it_is_trusted(teran, tmp_path, monkeypatch):
    index = Index.build(tmp_path / "i", teran, [images(teran, 10)])
    stage = lambda: index.query_text(SENTENCE, 3).stage
    fit_first_stage(index, features=16, queries=3)
    assert stage() == "exact"  # So few are all scored.
    monkeypatch.setattr(first_stage, "EXACT_BELOW", 5)
    assert stage() == "staged"
    index.add([images(teran, 10, 10)])
    assert stage() == Index.open(tmp_path / "i", teran).query_text(SENTENCE, 3).stage == "staged"
    index.add([images(teran, 1, 20)])  # Twice as many, and one more.
    assert stage() == "exact"
    index.remove(["i7"])
    assert stage() == "staged"
    monkeypatch.setattr(fitting, "measure_recall", lambda index, queries: 0.949)
    assert not fit_first_stage(index, features=16, queries=3)["trusted"]
    assert stage() == "exact"
    assert index.query_text(SENTENCE, 3, stage="staged").stage == "staged"


def test_mistakes_leave_what_was_there(teran, tmp_path):
    index = Index.build(tmp_path / "i", teran, [images(teran, 4)])
    twice = images(teran, 3, 4)
    twice.items[2] = twice.items[0]
    broken = images(teran, 3, 4)
    tokens = np.array(broken.embeddings.tokens)
    tokens[1, 0, 0] = np.nan
    broken = dataclasses.replace(broken, embeddings=broken.embeddings.replace(tokens=tokens))
    for part, message in (
        (images(teran, 3, 3), "the index has an item 'i3' already"),
        (twice, "the index has an item 'i4' already"),
        (broken, "the embeddings of 'i5' are not finite"),
    ):
        before = len(index)
        with pytest.raises(UserError, match=message):
            index.add([images(teran, 1, 100 + len(index)), part])
        # The part before it stays.
        assert len(index.items()) == len(index) == before + 1
        index = Index.open(tmp_path / "i", teran, verify=True)
        assert index.item(f"i{100 + len(index) - 1}")
    assert len(index) == 7
    with pytest.raises(UserError, match="has no item 'nope'"):
        index.remove(["i0", "nope"])
    assert len(Index.open(tmp_path / "i", teran)) == 7
    with pytest.raises(UserError, match="made with another model than the one given"):
        Index.open(tmp_path / "i", exported("teran", seed=1))
    with pytest.raises(UserError, match=r"the model of .* is not at \(no path\); give its export"):
        Index.open(tmp_path / "i")
    with pytest.raises(UserError, match="store='int3' is not known; use int8 or float16"):
        Index.build(tmp_path / "j", teran, store="int3")
    with pytest.raises(UserError, match="k=0; give 1 or more"):
        index.query_text(SENTENCE, 0)
    with pytest.raises(UserError, match="has no first stage; make one with"):
        index.query_text(SENTENCE, stage="staged")
    assert not (tmp_path / "j").exists()


def changed(part, **arrays):
    """A part with other embeddings, or boxes."""
    boxes = arrays.pop("boxes", part.boxes)
    return dataclasses.replace(part, embeddings=part.embeddings.replace(**arrays), boxes=boxes)


def test_a_part_that_would_break_searches_is_refused(teran, tmp_path):
    index = Index.build(tmp_path / "i", teran, [images(teran, 4)], store="float16")
    part = images(teran, 3, 4)
    tokens, mask, pooled = (np.array(x) for x in jax.tree.leaves(part.embeddings))
    boxes, large = np.array(part.boxes), tokens.copy()
    boxes[2, 1, 3] = np.nan
    large[1, 0, 2] = -65_600
    shapes = r"the part of 'i4' has 3 items with tokens \[3, 5, 8\], .*; give \[n, R, D\]"
    for wrong, message in (
        (changed(part, tokens=tokens[..., 1:]), r"'i4' have dimensions {'tokens': \d+} and those"),
        (changed(part, tokens=large), "of 'i5' reach 65,600 and float16 ends at 65,504; make"),
        (changed(part, boxes=boxes), "a box of 'i6' is not finite; give x1, y1, x2, y2 in 0..1"),
        (changed(part, boxes=part.boxes * 1e6), "a box of 'i4' is not finite"),
        (changed(part, boxes=part.boxes[:2]), shapes),
        (changed(part, boxes=part.boxes[:, :2]), shapes),
        (changed(part, mask=mask[:, :2]), shapes),
        (changed(part, pooled=pooled[:1]), shapes),
        (dataclasses.replace(part, items=part.items[:2]), "'i4' has 2 items with tokens"),
        (changed(part, tokens=tokens[0]), "'i4' has 3 items with tokens"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            index.add([wrong])
        assert "\n" not in str(caught.value)
    # Of the part that comes first in an index the others have to be, too.
    empty = Index.build(tmp_path / "e", teran, [])
    with pytest.raises(UserError, match="have dimensions"):
        empty.add([part, changed(images(teran, 1), tokens=tokens[:1, :, 1:])])
    assert len(index) == 4 and len(empty) == 3
    # Nothing of it is there, and a part without items is none.
    nothing = jax.tree.map(lambda x: x[:0], part.embeddings)
    assert index.add([Part([], nothing), part]) == 3
    assert len(Index.open(tmp_path / "i", teran, verify=True).query_text(SENTENCE).hits) == 7
    # In int8 large ones are kept.
    index = Index.build(tmp_path / "j", teran, [changed(part, tokens=large)])
    kept = index.stored(np.array([1])).tokens[0, 0, 2]
    np.testing.assert_allclose(kept, -65_600, rtol=1e-6)


def test_a_build_that_fails_or_is_killed_is_no_index(teran, tmp_path):
    def parts():
        yield images(teran, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index.build(tmp_path / "i", teran, parts())
    assert not (tmp_path / "i").exists()
    # What is left of it does not come in the way.
    index = Index.build(tmp_path / "i", teran, [images(teran, 3)])
    assert len(index) == 3 and len(Index.open(tmp_path / "i", teran, verify=True)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_an_empty_index_finds_nothing(teran, tmp_path):
    index = Index.build(tmp_path / "i", teran)
    assert len(index) == 0 and index.query_text(SENTENCE).hits == []
    with pytest.raises(UserError, match="is empty; add items first"):
        fit_first_stage(index)


def test_the_likes_of_an_image(teran, tmp_path):
    part = images(teran)
    index = Index.build(tmp_path / "i", teran, [part])
    rows = [stored(part, n)[0] for n in range(COUNT)]
    expected = np.array(
        [np.mean([max(float(np.dot(r, q)) for r in row) for q in rows[5]]) for row in rows]
    )
    check(index.query_item("i5"), expected)
    assert index.query_item("i5").hits[0].item.id == "i5"


def test_both_scores_share_what_they_read_and_programs_outlive_additions(
    teran, tmp_path, monkeypatch
):
    read = []
    take = Table.take
    monkeypatch.setattr(
        Table, "take", lambda self, rows, names: read.append(len(rows)) or take(self, rows, names)
    )
    index = Index.build(tmp_path / "i", teran, [images(teran, 33)])
    traced = []
    for name, scan_ in index._scans.items():
        score = scan_.scores
        counted = lambda block, query, s=score, n=name: traced.append(n) or s(block, query)
        index._scans[name] = scan.Scan(counted, index._mesh)
    read.clear()
    index.query_text(SENTENCE)
    assert read == [1, 64] and traced == ["model"]  # a row for its size, and one block
    index.search(Query("images", index.item_query("i3").embeddings))
    assert read == [1, 64, 1] and traced == ["model", "likeness"]  # and the item that is asked
    # Up to 64 rows the block is as large.
    index.add([images(teran, 4, 33)])
    index.query_text(SENTENCE)
    assert read[3:] == [1, 64] and len(traced) == 2


def test_words_and_the_regions_that_answer_them(teran, tmp_path):
    part = images(teran)
    index = Index.build(tmp_path / "i", teran, [part])
    query = index.text_query(SENTENCE)
    words, _ = plain(captions(teran, [SENTENCE]), 0)
    regions, _ = stored(part, 3)
    cosines = [[float(np.dot(r, w)) for w in words] for r in regions]
    np.testing.assert_allclose(index.similarities(query, 3), cosines, atol=1e-5)
    found = matched_words(index, query, 3)
    assert [word.text for word in found] == ["word3", "word7", "word1"]
    assert [SENTENCE[word.start : word.end] for word in found] == [word.text for word in found]
    for n, word in enumerate(found):
        column = [row[n] for row in cosines]
        assert word.region == int(np.argmax(column))
        assert word.similarity == pytest.approx(max(column), abs=1e-5)
    valid = part.embeddings.mask[3]
    np.testing.assert_allclose(index.boxes(3), part.boxes[3][valid], atol=1e-3)
    assert matched_words(index, index.item_query("i3"), 3) == []


def test_a_fingerprint_is_that_of_what_a_model_computes(teran):
    assert exported("teran").fingerprint == teran.fingerprint
    assert exported("teran", seed=1).fingerprint != teran.fingerprint
    assert exported("teran_mwsr").fingerprint != teran.fingerprint
    # One word of the vocabulary is another one.
    words = WordTokenizer([*VOCABULARY[:-1], "another"])
    assert dataclasses.replace(teran, tokenizer=words).fingerprint != teran.fingerprint


@pytest.mark.parametrize("variant", ["teran", "vse"])
def test_boxes_are_those_of_valid_regions(variant, tmp_path):
    model = exported(variant)
    first, second = images(model, 5), images(model, 4, start=5, seed=1)
    bare = Part(second.items, second.embeddings)
    index = Index.build(tmp_path / "i", model, [first, bare])
    for row in range(5):
        expected = [box for box in first.boxes[row].tolist() if box != [0, 0, 0, 0]]
        np.testing.assert_allclose(index.boxes(row), expected, atol=5e-4)
    assert [index.boxes(row) for row in range(5, 9)] == [None] * 4


def test_a_word_is_represented_by_its_letters_and_not_by_the_comma_beside_it():
    """Pieces as BERT's tokenizer makes them; all values by hand."""
    text = "coats, don't - ok"
    pieces = ["coat", "s", ",", "don", "'", "t", "-", "ok"]
    starts = [0, 4, 5, 7, 10, 11, 13, 15]
    spans = np.array([[a, a + len(p)] for a, p in zip(starts, pieces, strict=True)])
    best = [0.1, 0.3, 0.9, 0.2, 0.8, 0.1, 0.5, 0.4]
    cosines = np.zeros((len(pieces), len(pieces)))
    np.fill_diagonal(cosines, best)  # piece n is answered by region n
    embeddings = Embeddings(np.zeros((1, 8, 1)), np.ones((1, 8), bool), np.zeros((1, 1)))
    index = SimpleNamespace(similarities=lambda query, row: cosines)
    found = matched_words(index, Query("captions", embeddings, text, spans), 0)
    assert [(w.text, w.region, w.similarity) for w in found] == [
        ("coats", 1, 0.3),
        ("don't", 3, 0.2),
        ("-", 6, 0.5),
        ("ok", 7, 0.4),
    ]
