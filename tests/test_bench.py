"""Synthetic items are distributed as real ones, and measurements say what they should."""

import json
import shutil
import time
from collections import namedtuple
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.small_indexes import WIDTH, model, part
from xmodal_jax.errors import UserError
from xmodal_jax.retrieval import __main__ as program
from xmodal_jax.retrieval import bench, fitting
from xmodal_jax.retrieval.answers import Answer, Hit
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Item
from xmodal_jax.retrieval.mixtures import Mixtures

COUNT = 300


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    made = Index.build(tmp_path_factory.mktemp("bench") / "index", model(), store="float16")
    made.add([part([f"image-{n}" for n in range(COUNT)])])
    fitting.fit_first_stage(made, features=32)
    return made


def moments(embeddings):
    """Mean, covariance between images and within, one image after another."""
    means, within = [], np.zeros((WIDTH, WIDTH))
    total = 0
    for tokens, mask in zip(*map(np.asarray, (embeddings.tokens, embeddings.mask)), strict=True):
        means.append(tokens[mask].mean(0))
        for vector in tokens[mask]:
            within += np.outer(vector - means[-1], vector - means[-1])
            total += 1
    return np.mean(means, 0), np.cov(np.array(means).T), within / total


def test_mixtures_keep_the_moments_within_and_between_images(index):
    drawn = Mixtures(index, seed=3).draw(4000)
    tokens, mask = np.asarray(drawn.tokens), np.asarray(drawn.mask)
    np.testing.assert_allclose(np.linalg.norm(tokens[mask], axis=-1), 1, atol=1e-5)
    assert not tokens[~mask].any() and mask.any(1).all()
    mine, real = moments(drawn), moments(part([str(n) for n in range(COUNT)]).embeddings)
    np.testing.assert_allclose(mine[0], real[0], atol=0.05)
    for own, others in zip(mine[1:], real[1:], strict=True):
        assert 0.7 < np.trace(own) / np.trace(others) < 1.4
        assert np.corrcoef(own.ravel(), others.ravel())[0, 1] > 0.9
    # No two are alike, and none is one of the index.
    firsts = np.concatenate(
        [tokens[:500, 0], part([str(n) for n in range(COUNT)]).embeddings.tokens[:, 0]]
    )
    products = firsts @ firsts.T - 2 * np.eye(len(firsts))
    assert products[:500].max() < 0.9999


def test_parts_have_ids_of_their_own_and_boxes(index):
    parts = list(Mixtures(index).parts(25, size=10))
    assert [len(p.items) for p in parts] == [10, 10, 5]
    assert len({item.id for p in parts for item in p.items}) == 25
    assert parts[2].boxes.shape == (5, 6, 4)
    again = list(Mixtures(index).parts(25, size=10))
    for a, b in zip(
        jax.tree.leaves(parts[1].embeddings), jax.tree.leaves(again[1].embeddings), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_measurement_of_every_engine(index, tmp_path):
    rows = list(bench.bench(index, 500, queries=20, engines=["qdrant-edge"], scratch=str(tmp_path)))
    names = [(row.engine, row.stage) for row in rows]
    assert names == [(e, s) for e in ("index", "qdrant-edge") for s in ("exact", "staged")]
    for row in rows:
        assert row.items == 500 and 0 < row.median_ms <= row.p95_ms and row.cpu_ms > 0
        assert row.recall >= 0.9 and row.build_s > 0
    # Vectors of 6 x 16 numbers of 2 bytes, scales, a mask and boxes; and codes of 512 bytes.
    assert rows[0].bytes >= 6 * (16 * 2 + 4 + 1 + 8)
    assert rows[1].bytes >= rows[0].bytes + 512
    assert not list(tmp_path.iterdir())
    lines = bench.table(rows).splitlines()
    assert len(lines) == 2 + 4 + 1 and lines[2].startswith("| 500 | index | exact |")


def test_recall_is_the_share_of_the_exact_hits():
    class Engine:
        """Finds for question n what is written there."""

        found = ("abc", "de", "")

        def __len__(self):
            return 6

        def search(self, query, k, stage):
            assert stage == "staged"
            hits = [Hit(Item(id), 0.0, 0) for id in self.found[query]]
            return Answer(hits, query, stage, 0.0)

    exact = [set("abd"), set("def"), set("a")]
    row, found = bench._asked(Engine(), "x", "staged", [0, 1, 2], 5.0, (1.0, 2.0), exact)
    assert row.recall == pytest.approx((2 + 2 + 0) / 7)
    assert found == [set("abc"), set("de"), set()]
    assert (row.items, row.engine, row.stage) == (6, "x", "staged")
    assert (row.bytes, row.build_s, row.build_cpu_s) == (5.0, 1.0, 2.0)


def test_a_model_of_one_vector_is_measured_without_a_first_stage(tmp_path):
    plain = Index.build(tmp_path / "plain", model("vse"), [part([str(n) for n in range(50)])])
    rows = list(bench.bench(plain, 80, queries=5, engines=["qdrant-edge"]))
    assert [(row.engine, row.stage) for row in rows] == [
        ("index", "exact"),
        ("qdrant-edge", "exact"),
    ]
    assert all(row.items == 80 and row.recall >= 0.9 for row in rows)


def test_the_time_of_making_the_input_is_not_counted():
    def slow():
        for number in range(3):
            time.sleep(0.05)
            yield number

    watch = bench._Watch()
    assert list(watch.without(slow())) == [0, 1, 2]
    assert watch.spent()[0] < 0.1


def test_a_first_stage_is_measured_with_what_it_was_not_fitted_on():
    asked = part([str(n) for n in range(7)]).embeddings
    fitted, held_out = fitting.halves(asked)
    np.testing.assert_array_equal(fitted.tokens, asked.tokens[:4])
    np.testing.assert_array_equal(held_out.tokens, asked.tokens[3:])
    fitted, held_out = fitting.halves(part([str(n) for n in range(8)]).embeddings)
    assert len(fitted.mask) == len(held_out.mask) == 4


def test_mistakes_say_what_to_do(index, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--images=10 is less than the 300 of the index"):
        next(bench.bench(index, 10))
    free = namedtuple("Usage", "free")(2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match="give a directory with more by --scratch"):
        next(bench.bench(index, 10**6, scratch=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_the_commands(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Index, "open", lambda path, model: index)
    assert program.main(["bench", "INDEX", "--images", "300", "--queries=5", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["stage"] for row in rows] == ["exact", "staged"]
    assert program.main(["bench", "INDEX", "--queries=5"]) == 0
    assert "| 300 | index | staged |" in capsys.readouterr().out
    target = f"qdrant-edge:{tmp_path}"
    for new in (300, 0):
        assert program.main(["copy", "INDEX", target]) == 0
        assert f"{target}: 300 images, {new} of them new" in capsys.readouterr().out
    command = ["query", "INDEX", "--like=image-7", "-k2", "--json"]
    answers = []
    for how in ([], ["--engine", target]):
        assert program.main(command + how) == 0
        answers.append(json.loads(capsys.readouterr().out)["hits"])
    assert [hit["id"] for hit in answers[0]] == [hit["id"] for hit in answers[1]]
    assert answers[1][0]["id"] == "image-7" and answers[1][0]["file"] == "image-7.png"
    assert (
        program.main(["query", "INDEX", "--like=image-7", f"--engine=qdrant-edge:{Path('/none')}"])
        == 2
    )
    assert "/none holds no collection; copy an index there first" in capsys.readouterr().err
