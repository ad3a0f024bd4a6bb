"""What every engine of a search does, the embedded index and Qdrant alike; oracles are loops."""

import dataclasses
import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests import programs, small_indexes
from tests.small_indexes import add_until_killed, model, open_engine, part, query
from tests.waiting import wait_for_lines
from xmodal_jax.errors import UserError
from xmodal_jax.retrieval import fitting
from xmodal_jax.retrieval.answers import Query
from xmodal_jax.retrieval.engines.copying import copy, stored_parts
from xmodal_jax.retrieval.engines.points import number_of
from xmodal_jax.retrieval.engines.qdrant import Qdrant
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.words import matched_words

NAMES = [f"image-{n}" for n in range(240)]
FEW = 60  # candidates of a first stage
RECALL = 0.9  # of the ten best, with so few candidates
ROUNDING = 2e-3  # of a score: vectors are kept in float16

ENGINES = ("index", "edge", "local")
STAGES = ("exact", "staged")


def loop_score(image, words, mode="MrAVGw"):
    """Of an image's and a caption's valid vectors, one pair of vectors after another."""
    best = []
    for word in words:
        best.append(
            max(sum(float(a) * float(b) for a, b in zip(word, r, strict=True)) for r in image)
        )
    if mode == "MrLSEw":
        return np.log(sum(np.exp(10 * b) for b in best))
    if mode == "MwSr":
        return loop_score(words, image, "MrSw")
    if mode == "symm":
        return loop_score(image, words, "MrSw") + loop_score(words, image, "MrSw")
    return sum(best) / (len(best) if mode == "MrAVGw" else 1)


def valid(embeddings, row):
    return np.asarray(embeddings.tokens)[row][np.asarray(embeddings.mask)[row]]


def loop_scores(parts, asked, mode="MrAVGw", turned=False):
    """id -> score of every item; turned: items are captions and the query an image."""
    words, out = valid(asked.embeddings, 0), {}
    for p in parts:
        for row, item in enumerate(p.items):
            pair = (valid(p.embeddings, row), words)
            out[item.id] = loop_score(*(pair[::-1] if turned else pair), mode)
    return out


def assert_best(answer, scores, k):
    """The answer names the k best of these scores, up to rounding, best first."""
    found = [hit.item.id for hit in answer.hits]
    assert len(set(found)) == len(found) == min(k, len(scores))
    np.testing.assert_allclose(
        [h.score for h in answer.hits], [scores[i] for i in found], atol=ROUNDING
    )
    best = sorted(scores.values(), reverse=True)[: len(found)]
    np.testing.assert_allclose([scores[i] for i in found], best, atol=2 * ROUNDING)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An index with a first stage: the embedded engine, and what Qdrant takes the latter from."""
    made = Index.build(tmp_path_factory.mktemp("base") / "index", model(), [], store="float16")
    made.add([part(NAMES)])
    about = fitting.fit_first_stage(made, features=64)
    assert about["recall"] > RECALL
    return made


@pytest.fixture(params=ENGINES)
def engine(request, base, tmp_path):
    """Holds NAMES."""
    kind, directory = request.param, tmp_path / "engine"
    if kind == "index":
        shutil.copytree(base.store.directory, directory)
    made = open_engine(kind, directory, base, create=True)
    if kind != "index":
        made.add([part(NAMES)])
    made.again = lambda: open_engine(kind, directory, base)
    yield made
    made.close()


@pytest.mark.parametrize("stage", STAGES)
def test_a_search_equals_a_double_loop(engine, stage):
    found = total = 0
    for seed in range(10):
        scores = loop_scores([part(NAMES)], query(seed))
        answer = engine.search(query(seed), 10, stage=stage, candidates=FEW)
        assert answer.stage == stage and answer.seconds > 0
        if stage == "exact":
            assert_best(answer, scores, 10)
        # The scores of a first stage's candidates are those of the model, too.
        for hit in answer.hits:
            assert abs(hit.score - scores[hit.item.id]) < ROUNDING
        least = sorted(scores.values())[-10] - ROUNDING
        found, total = found + sum(scores[h.item.id] >= least for h in answer.hits), total + 10
    assert found / total >= RECALL


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_that_are_scored_in_groups_are_those_at_once(base, monkeypatch, rows):
    numbers = small_indexes.VECTORS * (small_indexes.WIDTH + 2)  # and scales, and the mask
    monkeypatch.setattr("xmodal_jax.retrieval.scan._GROUP_BYTES", 4 * numbers * rows)
    grouped = Index.open(base.store.directory, base.model)
    scores = loop_scores([part(NAMES)], query(1))
    for k in (10, 1000):
        assert_best(grouped.search(query(1), k, stage="exact"), scores, k)
    blocks = list(grouped._blocks.values())
    assert [(b.group, b.size) for b in blocks] == [(rows, 8 * 32)]


def test_all_candidates_are_an_exact_search(engine):
    scores = loop_scores([part(NAMES)], query(1))
    assert_best(engine.search(query(1), 20, stage="staged", candidates=300), scores, 20)
    assert_best(engine.search(query(1), 1000, stage="exact"), scores, 1000)


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_added_is_found(engine, stage):
    more = [part(["new-1", "new-2"], seed=5), part(["new-3"], seed=6)]
    stored = []
    assert engine.add(iter(more), stored.append) == 3 and stored == [2, 1]
    assert len(engine) == len(NAMES) + 3
    scores = loop_scores([part(NAMES), *more], query(2))
    assert_best(engine.search(query(2), 400, stage=stage, candidates=400), scores, 400)
    hit = next(h for h in engine.search(query(2), 400).hits if h.item.id == "new-2")
    assert hit.item == more[0].items[1]
    np.testing.assert_allclose(
        engine.boxes(hit.row), more[0].boxes[1][np.asarray(more[0].embeddings.mask)[1]], atol=1e-3
    )


def test_an_id_that_is_taken_is_refused_and_parts_before_it_stay(engine):
    with pytest.raises(UserError, match="'image-3' already; remove it first"):
        engine.add([part(["new-1"]), part(["new-2", "image-3"])])
    assert len(engine) == len(NAMES) + 1
    with pytest.raises(UserError, match="'twice' already"):
        engine.add([part(["twice", "twice"])])
    broken = part(["fine", "broken"])
    broken.embeddings.tokens[1, 0, 0] = np.nan
    with pytest.raises(UserError, match="embeddings of 'broken' are not finite"):
        engine.add([broken])
    assert len(engine) == len(NAMES) + 1


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_removed_is_not_found(engine, stage):
    gone = NAMES[10:200]
    engine.remove(gone)
    assert len(engine) == len(NAMES) - len(gone)
    scores = loop_scores([part(NAMES)], query(3))
    left = {name: score for name, score in scores.items() if name not in gone}
    assert_best(engine.search(query(3), 300, stage=stage, candidates=300), left, 300)
    with pytest.raises(UserError, match="no item 'image-11'"):
        engine.remove(["image-1", "image-11"])
    assert len(engine) == len(NAMES) - len(gone)
    engine.add([part(["image-11"], seed=9)])  # its name is free again
    assert len(engine) == len(NAMES) - len(gone) + 1


def test_reopened_it_answers_as_before(engine):
    engine.add([part(["new-1"], seed=5)])
    engine.remove(["image-7"])
    before = [(h.item, h.score) for h in engine.search(query(4), 30).hits]
    engine.close()
    again = engine.again()
    assert len(again) == len(NAMES)
    assert [(h.item, h.score) for h in again.search(query(4), 30).hits] == before
    again.close()


@pytest.mark.parametrize("stage", STAGES)
def test_a_field_narrows_a_search(engine, stage):
    engine.add([part(["x", "y"], seed=5, **{"a b": 'with "quotes"'})])
    scores = loop_scores([part(NAMES)], query(5))
    odd = {name: scores[name] for name in NAMES[1::2]}
    how = {"stage": stage, "candidates": 300}
    assert_best(engine.search(query(5), 9, where={"split": "odd", "a": "b"}, **how), {}, 9)
    new = loop_scores([part(["x", "y"], seed=5)], query(5))
    answer = engine.search(query(5), 9, where={"split": "odd", "a b": 'with "quotes"'}, **how)
    assert_best(answer, {"y": new["y"]}, 9)
    engine.remove(["x", "y"])
    assert_best(engine.search(query(5), 9, where={"split": "odd"}, **how), odd, 9)


def test_candidates_are_named_among_the_items_of_a_field(engine):
    # Not among all, of which none might be left.
    engine.add([part(["rare"], seed=5, kind="rare")])
    for seed in range(10):
        answer = engine.search(query(seed), 1, stage="staged", candidates=1, where={"kind": "rare"})
        assert [hit.item.id for hit in answer.hits] == ["rare"]


def test_items_like_an_item(engine):
    asked = engine.item_query("image-5")
    scores = loop_scores([part(NAMES)], asked)
    for stage in STAGES:
        answer = engine.search(asked, 10, stage=stage, candidates=300)
        assert_best(answer, scores, 10)
        assert answer.hits[0].item.id == "image-5"
    with pytest.raises(UserError, match="no item 'nothing'"):
        engine.item_query("nothing")


def test_similarities_and_words_of_a_hit(engine, base):
    spans = np.zeros((small_indexes.VECTORS, 2), int)
    spans[0], spans[1] = (0, 3), (4, 7)
    vectors = small_indexes.embeddings(1, 77)
    mask = np.arange(small_indexes.VECTORS)[None] < 2
    asked = Query("captions", vectors.replace(mask=mask), "red dog", spans)
    hit = engine.search(asked, 1).hits[0]
    image = valid(part(NAMES).embeddings, NAMES.index(hit.item.id))
    words = valid(asked.embeddings, 0)
    np.testing.assert_allclose(engine.similarities(asked, hit.row), image @ words.T, atol=ROUNDING)
    matched = matched_words(engine, asked, hit.row)
    assert [word.text for word in matched] == ["red", "dog"]
    assert [word.region for word in matched] == list((image @ words.T).argmax(0))


def assert_codes_are_those_of_their_items(index, name):
    """Of the parts that `add_until_killed` added; also every file is as its checksum says."""
    index = Index.open(index.store.directory, index.model, verify=True)
    ids = [item.id for item in index.items() if item.id.startswith(name)]
    # A part is there as a whole or not at all.
    assert ids == [f"{name}-{n // 3}-{n % 3}" for n in range(len(ids))] and len(ids) % 3 == 0
    vectors = [
        index.first_stage.item_vectors(part(ids[3 * n : 3 * n + 3], seed=n).embeddings)
        for n in range(len(ids) // 3)
    ]
    rows = np.array([index.row(id) for id in ids])
    kept = index.store.table().take(rows, ("codes", "codes_scale"))
    found = kept["codes"] * kept["codes_scale"]
    assert (np.abs(found - np.concatenate(vectors)) <= 0.51 * kept["codes_scale"]).all()


@pytest.mark.parametrize("kind", ENGINES)
def test_killed_while_adding_it_has_all_that_was_acknowledged(kind, base, tmp_path):
    rng = np.random.default_rng()
    log, directory = tmp_path / "acknowledged", tmp_path / "engine"
    if kind == "index":
        shutil.copytree(base.store.directory, directory)
    for trial in range(2):
        log.unlink(missing_ok=True)
        arguments = (kind, str(directory), str(base.store.directory), str(log))
        program = programs.Fork(add_until_killed, *arguments, f"trial-{trial}")
        wait_for_lines([program], log, 3)
        time.sleep(rng.uniform(0, 0.5))
        program.kill()
        program.communicate()
        acknowledged = log.read_text().splitlines()
        again = open_engine(kind, directory, base)
        found = {hit.item.id for hit in again.search(query(0), 100_000, stage="exact").hits}
        assert set(acknowledged) <= found and len(found) == len(again)
        if kind == "index":
            assert_codes_are_those_of_their_items(again, f"trial-{trial}")
        again.add([part([f"after-{trial}"])])  # and it goes on
        again.close()


# Qdrant with other models and sides: what its MaxSim is not, the model scores.


def qdrant_of(tmp_path, exported, side="images", parts=None):
    """A collection in the process, and the parts that it holds."""
    parts = parts or [part(NAMES[:60])]
    index = Index.build(tmp_path / "index", exported, parts, side=side, store="float16")
    if index.kind == "tokens":
        fitting.fit_first_stage(index, features=32)
    made = Qdrant.open(f"qdrant-edge:{tmp_path / 'edge'}", index, create=True)
    assert copy(index, made) == 60
    return index, made


@pytest.mark.parametrize("mode, exact", [("MrSw", True), ("MrLSEw", False), ("symm", False)])
def test_qdrant_with_other_alignments(tmp_path, mode, exact):
    _, made = qdrant_of(tmp_path, model(**{"model.alignment": mode}))
    scores = loop_scores([part(NAMES[:60])], query(1), mode)
    answer = made.search(query(1), 10, candidates=100)
    assert answer.stage == "staged"
    found = [hit.item.id for hit in answer.hits]
    assert found == sorted(scores, key=scores.get, reverse=True)[:10]
    expected = [scores[name] for name in found]
    np.testing.assert_allclose([hit.score for hit in answer.hits], expected, rtol=ROUNDING)
    if exact:
        assert made.search(query(1), 10, stage="exact").hits[0].item.id == found[0]
    else:
        with pytest.raises(UserError, match="stage='exact' is not possible in Qdrant .* staged"):
            made.search(query(1), 10, stage="exact")


def test_captions_for_an_image_are_scored_by_the_model(tmp_path):
    # MaxSim with the image as the query would be the sum over the wrong side.
    _, made = qdrant_of(tmp_path, model(), side="captions")
    scores = loop_scores([part(NAMES[:60])], query(1, "images"), turned=True)
    assert_best(made.search(query(1, "images"), 10, candidates=100), scores, 10)
    with pytest.raises(UserError, match="index of captions is asked by images"):
        made.search(query(1), 10)


@pytest.mark.parametrize("mode", ["MrAVGw", "MrSw"])
def test_a_first_stage_finds_captions_of_all_lengths(tmp_path, mode):
    # A sum over words grows with their number, a mean does not: codes have to do as the score.
    parts = [part([f"caption-{n}" for n in range(400)], seed=3)]
    exported = model(**{"model.alignment": mode})
    index = Index.build(tmp_path / "index", exported, parts, side="captions", store="float16")
    fitting.fit_first_stage(index, features=64)
    found = 0
    for seed in range(10):
        scores = loop_scores(parts, query(seed, "images"), mode, turned=True)
        best = sorted(scores, key=scores.get, reverse=True)[:10]
        answer = index.search(query(seed, "images"), 10, stage="staged", candidates=40)
        found += len({hit.item.id for hit in answer.hits} & set(best))
    assert found / 100 >= RECALL


@pytest.mark.parametrize("variant, stage", [("vse", "exact"), ("scan_t2i", "staged")])
def test_qdrant_with_models_of_other_kinds(tmp_path, variant, stage):
    index, made = qdrant_of(tmp_path, model(variant))
    expected = index.search(query(1), 10, stage="exact").hits
    answer = made.search(query(1), 10, candidates=100)
    assert answer.stage == stage
    assert [h.item.id for h in answer.hits] == [h.item.id for h in expected]
    np.testing.assert_allclose(
        [h.score for h in answer.hits], [h.score for h in expected], atol=ROUNDING
    )
    liked = made.search(made.item_query("image-5"), 3)
    assert liked.stage == "exact" and liked.hits[0].item.id == "image-5"
    if variant == "vse":
        pooled = part(NAMES[:60]).embeddings.pooled @ query(1).embeddings.pooled[0]
        np.testing.assert_allclose([h.score for h in expected], np.sort(pooled)[:-11:-1], atol=1e-3)


def test_a_copy_that_was_stopped_is_continued(tmp_path, base):
    made = Qdrant.open(f"qdrant-edge:{tmp_path}", base, create=True)
    seen = []
    assert copy(base, made) == 240
    made.remove(NAMES[3:7])
    assert copy(base, made, seen.append) == 4 and sum(seen) == 240
    assert len(made) == 240
    made.close()


def test_items_without_boxes_take_none_from_others(tmp_path):
    """Of three parts the second has no boxes; blocks of items lie across their ends."""
    parts = [part([f"{name}{n}" for n in range(5)], seed=seed) for seed, name in enumerate("abc")]
    parts[1] = dataclasses.replace(parts[1], boxes=None)
    index = Index.build(tmp_path / "index", model(), parts, store="float16")
    index.remove(["a2", "c0"])
    copied = list(stored_parts(index, 4))
    ids = [item.id for found in copied for item in found.items]
    assert ids == [item.id for item in index.items()] and len(ids) == 13
    assert max(len(found.items) for found in copied) == 4
    made = Qdrant.open(f"qdrant-edge:{tmp_path / 'edge'}", index, create=True)
    assert copy(index, made) == 13
    for name in ids:
        own = parts["abc".index(name[0])]
        row = int(name[1])
        found = made.boxes(number_of(name))
        if own.boxes is None:
            assert found is None
        else:
            expected = own.boxes[row][own.embeddings.mask[row]]
            np.testing.assert_allclose(found, expected, atol=1e-3)
    made.close()
    empty = Index.build(tmp_path / "empty", model())
    assert list(stored_parts(empty)) == []


def test_mistakes_say_what_to_do(tmp_path, base):
    with pytest.raises(UserError, match="holds no collection; copy an index there first"):
        Qdrant.open(f"qdrant-edge:{tmp_path / 'none'}", base)
    with pytest.raises(UserError, match="'redis:x' is no engine; use qdrant-edge:DIRECTORY or"):
        Qdrant.open("redis:x", base)
    for url in ("http://localhost:1", "http://localhost:1/a/b", "http:///name"):
        with pytest.raises(UserError, match="is not http://HOST:PORT/COLLECTION"):
            Qdrant.open(url, base)
    with pytest.raises(UserError, match="server http://127.0.0.1:1 does not answer"):
        Qdrant.open("http://127.0.0.1:1/images", base)
    empty = Index.build(tmp_path / "empty", model())
    with pytest.raises(UserError, match="is empty: its vectors' sizes are not known yet"):
        Qdrant.open(f"qdrant-edge:{tmp_path / 'new'}", empty, create=True)
    made = Qdrant.open(f"qdrant-edge:{tmp_path / 'edge'}", base, create=True)
    with pytest.raises(UserError, match="another process has opened .*; Qdrant Edge is for one"):
        Qdrant.open(f"qdrant-edge:{tmp_path / 'edge'}", base)
    with pytest.raises(UserError, match="can't search a field called 'a\"b'"):
        made.search(query(0), where={'a"b': "c"})
    with pytest.raises(UserError, match="can't search a field called 'a\"b'"):
        made.add([part(["new"], **{'a"b': "c"})])
    made.add([part(["new"])])
    made.close()
    other = Index.build(tmp_path / "other", model(**{"model.alignment": "MrSw"}), [part(["x"])])
    with pytest.raises(UserError, match="encoded otherwise than .*copy the index to an empty"):
        Qdrant.open(f"qdrant-edge:{tmp_path / 'edge'}", other)
    without = model(**{"model.alignment": "MrLSEw"})
    plain = Index.build(tmp_path / "plain", without, [part(["x"])])
    with pytest.raises(UserError, match="needs a first stage for this score"):
        Qdrant.open(f"qdrant-edge:{tmp_path / 'chan'}", plain, create=True).search(query(0))


def test_a_first_stage_is_trusted_near_the_size_it_was_measured_at(tmp_path, base):
    made = Qdrant.open(f"qdrant-edge:{tmp_path}", base, create=True)
    made.add([part(NAMES)])
    assert made.search(query(0)).stage == "staged"
    more = [f"more-{n}" for n in range(241)]  # now more than twice as many
    made.add([part(more)])
    assert made.search(query(0)).stage == "exact"
    assert made.search(query(0), stage="staged").stage == "staged"
    made.remove(more[:1])
    assert made.search(query(0)).stage == "staged"
    made.close()


class Cluster(BaseHTTPRequestHandler):
    """As much of a Qdrant server as opens an empty collection; all else it answers with `mood`."""

    mood = (200, b"")

    def do_GET(self):
        self.answer({"exists": True})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        scroll = self.path.split("?")[0].endswith("/scroll")
        self.answer({"points": []} if scroll else None)

    do_PUT = do_POST

    def answer(self, result):
        status, body = self.mood
        if result is not None:
            status, body = 200, json.dumps({"result": result, "status": "ok", "time": 0}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"Must provide an API key\nor leave", "refuses the key in QDRANT_API_KEY: .*401"),
        (403, b"{}", "refuses the key in QDRANT_API_KEY: .*403"),
        (500, b'{"status": {"error": "disk"}}', "does not answer: Unexpected Response: 500"),
        (200, b"<html>\nno Qdrant", "does not answer: .*"),
        (0, b"", "does not answer: "),  # gone
    ],
)
def test_a_server_that_fails_later_is_one_line(base, status, body, said):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    server.RequestHandlerClass = type("Moody", (Cluster,), {"mood": (status, body)})
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        made = Qdrant.open(f"{address}/items", base)
        if not status:
            server.shutdown()
            server.server_close()
        for work in (
            lambda: made.search(query(0)),
            lambda: made.add([part(["new"])]),
            lambda: made.remove(["old"]),
            lambda: made.item_query("old"),
            lambda: len(made),
        ):
            with pytest.raises(UserError, match=f"the Qdrant server {address} {said}") as caught:
                work()
            assert "\n" not in str(caught.value)
        made.close()
    finally:
        server.shutdown()
        server.server_close()


def test_an_item_of_too_many_numbers_is_refused(tmp_path, base, monkeypatch):
    monkeypatch.setattr("xmodal_jax.retrieval.engines.points._LARGEST", 2 * small_indexes.WIDTH)
    made = Qdrant.open(f"qdrant-edge:{tmp_path}", base, create=True)
    with pytest.raises(
        UserError, match="vectors of 16 numbers; Qdrant takes fewer than 32 numbers"
    ):
        made.add([part(NAMES[:9])])
    assert len(made) == 0
    made.close()


def test_numbers_are_ids_that_qdrant_takes():
    numbers = {number_of(name) for name in NAMES}
    assert len(numbers) == len(NAMES)
    assert all(0 <= number < 2**63 for number in numbers)
