"""Reports: their figures by hand, what they write, what they read of others, and comparisons."""

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from xmodal_jax.errors import UserError
from xmodal_jax.metrics import statistics
from xmodal_jax.metrics.judgements import of_lists
from xmodal_jax.metrics.parts import metrics_of_parts, parts_of
from xmodal_jax.metrics.rouge import rouge_relevance
from xmodal_jax.report import __main__ as program
from xmodal_jax.report.build import Options, build_report
from xmodal_jax.report.collection import Collection
from xmodal_jax.report.comparison import compare, make_run
from xmodal_jax.report.examples import choose_failures, choose_successes
from xmodal_jax.report.files import read_report
from xmodal_jax.report.matrices import ScoreSaver, read_scores
from xmodal_jax.report.page import render_page
from xmodal_jax.report.relevance import corrected_of
from xmodal_jax.report.trec import TrecRuns

IMAGES, CAPTIONS = 20, 60
WORDS = ["a", "red", "dog", "cat", "<b>runs</b>", "'fast'", "&amp;", "on", "grass"]


def make_scores(seed=0, strength=1.5):
    rng = np.random.default_rng(seed)
    own = np.repeat(np.arange(IMAGES), 3)
    noise = rng.normal(size=(IMAGES, CAPTIONS)).astype(np.float32)
    return noise + np.float32(strength) * (np.arange(IMAGES)[:, None] == own)


def make_collection():
    rng = np.random.default_rng(9)
    ids = np.arange(IMAGES) * 2 + 1
    texts = [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(CAPTIONS)]
    return Collection(ids, np.repeat(ids, 3), [f"{i}.jpg" for i in ids], texts)


def make_report(scores, protocol="full", **options):
    collection = make_collection()
    ids = collection.image_ids, collection.caption_image_ids
    parts = parts_of(scores, *ids, protocol)
    about = {"name": "a <script>alert(1)</script> run", "protocol": protocol}
    return build_report(parts, collection, Options(**options), about)


def save(path, seed=0, strength=1.5, **arrays):
    collection = make_collection()
    np.savez(
        path,
        scores=make_scores(seed, strength),
        image_ids=collection.image_ids,
        caption_image_ids=collection.caption_image_ids,
        captions=np.array(collection.captions),
        image_names=np.array(collection.image_names),
        **arrays,
    )
    return str(path)


@pytest.mark.parametrize("protocol", ["full", "5fold"])
def test_figures_are_those_of_the_protocol(protocol):
    scores, collection = make_scores(), make_collection()
    ids = collection.image_ids, collection.caption_image_ids
    rows = collection.caption_rows()
    relevance = rouge_relevance(collection.captions, rows, IMAGES)
    report = make_report(scores, protocol, relevances={"rouge": relevance})
    expected = metrics_of_parts(parts_of(scores, *ids, protocol))
    found = report.metrics()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9)
    # MRR of captions by loops, among the images of their own fold.
    size = IMAGES if protocol == "full" else IMAGES // 5
    by_fold = []
    for start in range(0, IMAGES, size):
        values = []
        for c in np.flatnonzero((rows >= start) & (rows < start + size)):
            column = scores[start : start + size, c]
            values.append(100 / (1 + np.sum(column > scores[rows[c], c])))
        by_fold.append(np.mean(values))
    assert found["t2i/mrr"] == pytest.approx(np.mean(by_fold), abs=1e-9)
    figure = report.figures["t2i/mrr"]
    assert figure.queries == CAPTIONS and figure.low < figure.value < figure.high
    if protocol == "full":
        assert figure.spread is None
    else:
        assert figure.spread == pytest.approx(np.std(by_fold, ddof=1), abs=1e-9)
        assert report.figures["rsum"].spread > 0


def test_a_score_that_is_not_finite_names_the_pair():
    scores = make_scores()
    scores[2, 7] = np.nan
    with pytest.raises(UserError, match=r"image 5 with caption 7 \(of image 5\) is nan; 1"):
        make_report(scores)


def test_scores_of_another_collection_are_refused():
    collection = make_collection()
    ids = collection.image_ids, collection.caption_image_ids
    for wrong in ((ids[0][::-1], ids[1]), (ids[0], ids[1][::-1])):
        with pytest.raises(UserError, match="are not of the .* in the collection"):
            parts = parts_of(make_scores(), *wrong, "full")
            build_report(parts, collection, Options(), {})


def test_corrected_figures_count_only_what_is_judged():
    class Split:
        columns = np.arange(CAPTIONS)

        @staticmethod
        def judgements(name):
            return {
                "i2t": of_lists([3], [np.arange(CAPTIONS)]),
                "t2i": of_lists([0, 5], [[1], [1]]),
            }

    scores = make_scores()
    scores[1, 0], scores[1, 5] = 99, -99
    found = make_report(scores, corrected=Split()).figures
    assert found["eccv/i2t/r1"].value == 100 and found["eccv/i2t/r1"].queries == 1
    assert found["cxc/t2i/r10"].value == 50 and found["cxc/t2i/r10"].queries == 2
    assert found["eccv/t2i/map_at_r"].value == 50


def test_captions_that_no_list_has_take_no_part_in_corrected_figures():
    class Split:
        columns = np.delete(np.arange(CAPTIONS), [4, 9])

        @staticmethod
        def judgements(name):
            # Column 4 of those that are left is caption 5.
            return {"i2t": of_lists([3], [[4]]), "t2i": of_lists([4], [[2]])}

    scores = make_scores()
    scores[3, 5], scores[3, 4], scores[3, 9] = 50, 99, 99
    scores[2, 5] = 60
    report = make_report(scores, corrected=Split())
    assert report.figures["eccv/i2t/r1"].value == 100
    values = report.tables["t2i"].values["cxc/r1"]
    assert values[5] == 100 and np.isnan(np.delete(values, 5)).all()


def test_corrected_ground_truth_is_found_or_its_absence_explained():
    ids = np.arange(5000)
    other = Collection(ids, ids)
    found, [note] = corrected_of(other, "full")
    assert found is None and "no corrected ground truth: corrected ground truth is for" in note
    assert corrected_of(make_collection(), "full") == (None, [])
    assert corrected_of(other, "5fold") == (None, [])
    with pytest.raises(UserError, match="for all 5,000 images at once, not for 5fold; use full"):
        corrected_of(other, "5fold", wanted=True)
    with pytest.raises(UserError, match="is for COCO's 5,000 test images"):
        corrected_of(make_collection(), "full", wanted=True)


def test_a_report_comes_back_from_its_files(tmp_path, capsys):
    file = save(tmp_path / "scores.npz")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for image in make_collection().image_ids[:-1]:
        Image.new("RGB", (300, 200), (int(image) * 5, 0, 0)).save(pictures / f"{image}.jpg")
    (pictures / "1.jpg").write_bytes(b"no picture")
    words = ["evaluate", file, "--out", str(tmp_path / "report"), "--images", str(pictures)]
    assert program.main([*words, "--teran-parity"]) == 0
    printed = capsys.readouterr().out
    collection = make_collection()
    relevance = rouge_relevance(collection.captions, collection.caption_rows(), IMAGES)
    report = make_report(make_scores(), relevances={"rouge": relevance})
    saved = read_report(tmp_path / "report")
    recall = next(line for line in printed.splitlines() if line.startswith("R@1 "))
    assert recall.split()[1] == f"{report.figures['i2t/r1'].value:.1f}"
    assert "the TERAN reference would print" in printed
    assert {"i2t/ndcg_rouge", "t2i/ndcg_rouge", "rsum"} < saved.figures.keys()
    assert saved.figures == report.figures
    assert saved.content["teran_parity"]["i2t/r5"] == report.figures["i2t/r5"].value
    assert saved.tables["t2i"].top.tolist() == report.tables["t2i"].top.tolist()
    with (tmp_path / "report" / "queries_t2i.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == CAPTIONS and rows[4]["caption"] == make_collection().captions[4]
    assert float(rows[4]["mean_rank"]) == report.tables["t2i"].rank()[4] + 1
    best = int(np.argmax(make_scores()[:, 4]))
    assert rows[4]["best_targets"].startswith(f"{best}:")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "data:image/jpeg" in page and "<b>runs</b>" not in page


def test_texts_are_escaped(tmp_path):
    page = render_page(make_report(make_scores(strength=0.1)))
    assert "<script>alert" not in page and "a &lt;script&gt;alert(1)&lt;/script&gt; run" in page
    assert "<b>runs</b>" not in page and "&lt;b&gt;runs&lt;/b&gt;" in page
    assert "http:" not in page and "https:" not in page


def test_trec_files_say_the_same_to_trec_and_to_us(tmp_path, capsys):
    file, out = save(tmp_path / "scores.npz"), tmp_path / "report"
    assert program.main(["evaluate", file, "--out", str(out), "--trec", str(CAPTIONS)]) == 0
    saved = read_report(out)
    for side, count in (("i2t", IMAGES), ("t2i", CAPTIONS)):
        with (out / f"{side}.qrels").open() as qrels, (out / f"{side}.run").open() as run:
            evaluator = pytrec_eval.RelevanceEvaluator(
                pytrec_eval.parse_qrel(qrels), {"recip_rank", "Rprec", "success_1,5,10"}
            )
            theirs = evaluator.evaluate(pytrec_eval.parse_run(run))
        assert len(theirs) == count
        mean = lambda name, theirs=theirs: 100 * np.mean([found[name] for found in theirs.values()])
        for ours, name in (
            ("mrr", "recip_rank"),
            ("r_precision", "Rprec"),
            ("r5", "success_5"),
        ):
            value = saved.figures[f"{side}/{ours}"].value
            assert value == pytest.approx(mean(name), rel=0, abs=1e-9)
    runs = ["--i2t", str(out / "i2t.run"), "--t2i", str(out / "t2i.run")]
    again = ["evaluate", *runs, "--qrels", str(out / "t2i.qrels"), "--out", str(tmp_path / "again")]
    assert program.main(again) == 0
    found = read_report(tmp_path / "again").figures
    for name in ("i2t/r1", "t2i/mean_rank", "i2t/map_at_r", "rsum"):
        assert found[name].value == pytest.approx(saved.figures[name].value, rel=0, abs=1e-9)


@pytest.mark.parametrize("depth", [1, 5, 12, 99])
def test_runs_are_as_deep_as_they_are_wanted(tmp_path, capsys, depth):
    words = ["evaluate", save(tmp_path / "scores.npz"), "--out", str(tmp_path)]
    assert program.main([*words, "--trec", str(depth)]) == 0
    scores = make_scores()
    lines = [line.split() for line in (tmp_path / "i2t.run").read_text().splitlines()]
    assert len(lines) == IMAGES * min(depth, CAPTIONS)
    for row, image in enumerate(make_collection().image_ids):
        own = [target for query, _, target, *_ in lines if query == f"i{image}"]
        assert own == [f"c{k}" for k in np.argsort(-scores[row])[:depth]]
    lines = (tmp_path / "t2i.run").read_text().splitlines()
    assert len(lines) == CAPTIONS * min(depth, IMAGES)


def test_what_a_run_leaves_out_is_equal_and_last(tmp_path):
    (tmp_path / "qrels").write_text("a 0 x 1\nb 0 x 1\nc 0 y 1\nc 0 x 0\n")
    (tmp_path / "i2t").write_text("x Q0 c 1 0.5 t\ny Q0 c 1 2 t\n")
    (tmp_path / "t2i").write_text("a Q0 x 1 1 t\nb Q0 y 1 1 t\nc Q0 y 1 -1 t\n")
    runs = TrecRuns(*(tmp_path / name for name in ("i2t", "t2i", "qrels")))
    i2t, t2i = runs.parts()
    # x wants a or b, which share the places 2 and 3: the first of them is at 2.
    found = metrics_of_parts([i2t, t2i])
    assert found["i2t/mean_rank"] == 1.5 and found["t2i/mean_rank"] == pytest.approx(4 / 3)
    assert runs.depths == {"i2t": 1, "t2i": 1}


def test_runs_are_paired_by_names_whatever_the_order_of_the_lines(tmp_path, capsys):
    words = ["evaluate", save(tmp_path / "s.npz"), "--out", str(tmp_path / "npz")]
    assert program.main([*words, "--trec", str(CAPTIONS)]) == 0
    written = {k: (tmp_path / "npz" / k).read_text() for k in ("i2t.run", "t2i.run", "t2i.qrels")}

    def evaluated(name, change):
        directory = tmp_path / name
        directory.mkdir()
        for kind, text in written.items():
            changed = change(text.splitlines(keepends=True))
            (directory / kind).write_text("".join(changed))
        words = [f"--{kind.split('.')[0]}={directory / kind}" for kind in ("i2t.run", "t2i.run")]
        words += [f"--qrels={directory / 't2i.qrels'}", f"--out={directory / 'report'}"]
        assert program.main(["evaluate", *words]) == 0
        return str(directory / "report")

    same = evaluated("same", lambda lines: lines)
    turned = evaluated("turned", lambda lines: lines[::-1])
    other = evaluated("other", lambda lines: [line.replace("i9 ", "i999 ") for line in lines])
    [a, b] = (read_report(Path(path)) for path in (same, turned))
    for side in ("i2t", "t2i"):
        for name, values in a.tables[side].values.items():
            np.testing.assert_array_equal(values, b.tables[side].values[name])
    capsys.readouterr()
    assert program.main(["compare", same, turned]) == 0
    assert "+0.00  [+0.00, +0.00]  1.00000" in capsys.readouterr().out
    for paths, said in (
        ([same, other], "same/report has 'i9' where"),
        ([same, str(tmp_path / "npz")], "one is of run files, whose queries have names"),
    ):
        assert program.main(["compare", *paths]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


TREC_MISTAKES = {
    "fields": ("i2t", "x Q0 c 1 0.5\n", "line 1 has 5 fields, not 6"),
    "number": ("t2i", "a Q0 x 1 high t\n", "line 1: 'high' is no number"),
    "nan": ("t2i", "a Q0 x 1 nan t\n", "line 1: the score of a and x is nan"),
    "unknown": ("t2i", "a Q0 z 1 1 t\n", "line 1: z is not in the qrels"),
    "twice": ("i2t", "x Q0 c 1 1 t\nx Q0 c 2 1 t\n", "line 2: x and c are there twice"),
    "missing": ("i2t", "x Q0 c 1 1 t\n", "has no line of query y"),
    "owners": ("qrels", "a 0 x 1\na 0 y 1\n", "caption a is right with y and with x"),
    "empty": ("qrels", "", "has no line 'CAPTION 0 IMAGE 1'"),
}


@pytest.mark.parametrize("case", TREC_MISTAKES)
def test_mistakes_in_run_files_are_one_line(tmp_path, capsys, case):
    (tmp_path / "qrels").write_text("a 0 x 1\nb 0 x 1\nc 0 y 1\n")
    (tmp_path / "i2t").write_text("x Q0 c 1 0.5 t\ny Q0 c 1 2 t\n")
    (tmp_path / "t2i").write_text("a Q0 x 1 1 t\nb Q0 y 1 1 t\nc Q0 y 1 -1 t\n")
    name, content, said = TREC_MISTAKES[case]
    (tmp_path / name).write_text(content)
    words = [f"--{name}={tmp_path / name}" for name in ("i2t", "t2i", "qrels")]
    assert program.main(["evaluate", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


IDS = np.arange(4)
MISTAKES = {
    "unknown": (dict(scores=np.ones((2, 4)), score=1), "holds 'score'; it may hold scores,"),
    "none": (dict(captions=np.array(["a"])), "holds no 'scores'"),
    "vector": (dict(scores=np.ones(4)), "'scores' is float64 [4], not numbers"),
    "pickle": (dict(scores=np.array([[{}]])), "can't be read as .npz without pickles"),
    "uneven": (dict(scores=np.ones((2, 5))), "5 captions of 2 images; give 'image_ids' and"),
    "length": (
        dict(scores=np.ones((2, 4)), image_ids=IDS, caption_image_ids=IDS),
        "'image_ids' is int64 [4], not 2 whole numbers",
    ),
    "stranger": (
        dict(scores=np.ones((2, 4)), image_ids=IDS[:2], caption_image_ids=IDS),
        "a caption is of image 2, which is not among the images",
    ),
    "texts": (dict(scores=np.ones((2, 4)), captions=IDS), "'captions' is int64, not an array of"),
    "few": (dict(scores=np.ones((2, 4)), captions=np.array(["a"])), "1 captions for 4 ids"),
    "empty": (dict(scores=np.ones((0, 0))), "'scores' is [0, 0]; give one score or more"),
    "flat": (dict(scores=np.ones((3, 0))), "'scores' is [3, 0]; give one score or more"),
    "listed": (
        dict(scores=np.ones((0, 0)), image_ids=IDS[:0], caption_image_ids=IDS[:0]),
        "'scores' is [0, 0]; give one score or more",
    ),
    "turned": (
        dict(scores=np.ones((2, 4)), scores_t2i=np.ones((2, 4))),
        "'scores_t2i' is [2, 4], not [4, 2]",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_saved_scores_are_one_line(tmp_path, capsys, case):
    arrays, said = MISTAKES[case]
    np.savez(tmp_path / "scores.npz", **arrays)
    assert program.main(["evaluate", str(tmp_path / "scores.npz")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x93NUMPY"])
def test_damaged_scores_are_one_line(tmp_path, capsys, content):
    (tmp_path / "scores.npz").write_bytes(content)
    assert program.main(["evaluate", str(tmp_path / "scores.npz")]) == 2
    error = capsys.readouterr().err
    assert "can't be read as .npz" in error and error.count("\n") == 1


def test_saved_scores_give_the_same_report(tmp_path):
    collection, scores = make_collection(), make_scores()
    ids = collection.image_ids, collection.caption_image_ids
    for protocol in ("full", "5fold"):
        saver = ScoreSaver(tmp_path / "scores.npz", collection)
        before = metrics_of_parts(saver.passing(parts_of(scores, *ids, protocol)))
        saver.write()
        saved = read_scores(tmp_path / "scores.npz")
        assert metrics_of_parts(saved.parts(protocol)) == before
        assert metrics_of_parts(saved.parts("5fold")) == metrics_of_parts(
            parts_of(scores, *ids, "5fold")
        )
        assert saved.collection.captions == list(collection.captions)
        assert saved.scores_t2i is None
    # The last ones are of folds alone, and make no figures of the whole.
    own = np.arange(IMAGES)[:, None] // 4 == np.arange(CAPTIONS) // 12
    np.testing.assert_array_equal(saved.scores, np.where(own, scores, np.float32("nan")))
    with pytest.raises(UserError, match="only the pairs within five folds have scores here; use 5"):
        list(saved.parts("full"))
    # A score that is missing by mistake is named.
    saved.scores[3, 9] = np.nan
    with pytest.raises(UserError, match="image 7 with caption 9 .* is nan; 1 scores"):
        metrics_of_parts(saved.parts("5fold"))
    np.save(tmp_path / "scores.npy", scores)
    assert read_scores(tmp_path / "scores.npy").collection.caption_rows().tolist() == [
        k // 3 for k in range(CAPTIONS)
    ]


def reports(tmp_path, **settings):
    for name, (seed, strength, *more) in settings.items():
        file = save(tmp_path / f"{name}.npz", seed, strength)
        out = str(tmp_path / "runs" / name / "report")
        assert program.main(["evaluate", file, "--out", out, *more]) == 0
    return [str(tmp_path / "runs" / name / "report") for name in settings]


def test_a_comparison_marks_what_is_significant_and_nothing_else(tmp_path, capsys):
    paths = reports(tmp_path, weak=(0, 0.1), alike=(1, 0.1), strong=(2, 9.0))
    capsys.readouterr()
    assert program.main(["compare", *paths, "--out", str(tmp_path / "c")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:4]] == ["run", "weak", "alike", "strong"]
    assert "*" not in printed[1] + printed[2] and printed[3].count("*") >= 8
    rows = json.loads((tmp_path / "c" / "comparison.json").read_text())["differences"]
    assert len(rows) == 3 * 9
    assert not any(r["significant"] for r in rows if {r["first"], r["second"]} == {"weak", "alike"})
    raw = np.array([row["p"] for row in rows])
    assert [row["p_corrected"] for row in rows] == pytest.approx(statistics.holm(raw))
    a, b = (read_report(tmp_path / "runs" / name / "report") for name in ("weak", "strong"))
    row = next(r for r in rows if (r["second"], r["figure"]) == ("strong", "t2i/r1"))
    assert row["value"] == pytest.approx(b.figures["t2i/r1"].value - a.figures["t2i/r1"].value)
    assert row["low"] <= row["value"] <= row["high"]


def test_seeds_are_one_row_and_ensembles_have_rows_of_their_own(tmp_path, capsys):
    names = {"a/seed0": (0, 3.0), "a/seed1": (1, 3.0), "b/seed0": (2, 0.1), "b/seed1": (3, 0.1)}
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
    singles = reports(tmp_path, **names)
    for name in ("both/c/seed0", "both/d/seed0"):
        (tmp_path / name).parent.mkdir(parents=True)
    more = ("--ensemble", "x", "y")
    ensembles = reports(
        tmp_path, **{"both/c/seed0": (4, 9.0, *more), "both/d/seed0": (5, 0.1, *more)}
    )
    capsys.readouterr()
    words = ["compare", "--seeds", *ensembles, *singles, "--figures", "rsum"]
    assert program.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines[1:5]] == [
        "a",
        "b",
        "ensemble: c",
        "ensemble: d",
    ]
    values = [read_report(tmp_path / "runs" / f"a/seed{k}" / "report") for k in (0, 1)]
    values = [found.figures["rsum"].value for found in values]
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}*" in lines[1]
    # c is far better than a, but an ensemble; each kind has a best one of its own.
    assert "*" not in lines[2] and lines[3].endswith("*") and not lines[4].endswith("*")
    assert program.main([*words, "--markdown"]) == 0
    heads, _, best, *_, ensemble, _ = capsys.readouterr().out.splitlines()
    assert heads == "| run | seeds | rsum |" and best.startswith("| a | 2 | **")
    assert ensemble.startswith("| ensemble: c | 1 | **") and "±" not in ensemble
    # The interval of one run is that of its own report.
    figure = read_report(Path(ensembles[0])).figures["rsum"]
    assert f"{figure.value:.1f} [{figure.low:.1f}, {figure.high:.1f}]" in ensemble
    # Seeds do not put an ensemble and a single run together.
    (tmp_path / "runs" / "a" / "seed9").mkdir()
    moved = tmp_path / "runs" / "a" / "seed9" / "report"
    (tmp_path / "runs" / "both" / "c" / "seed0" / "report").rename(moved)
    assert program.main(["compare", "--seeds", *singles, str(moved)]) == 2
    assert "a: an ensemble and a single run are not two seeds" in capsys.readouterr().err


def test_the_mean_of_seeds_is_tested_by_queries(tmp_path):
    paths = reports(tmp_path, a=(0, 1.0), b=(1, 1.2))
    a, b = (read_report(Path(path)) for path in paths)
    both = make_run("both", [a, b])
    [difference] = compare([make_run("a", [a]), both], ["t2i/mrr"])
    per_image = [t.tables["t2i"].values["mrr"].reshape(IMAGES, 3).sum(1) / CAPTIONS for t in (a, b)]
    gap = (per_image[1] - per_image[0]) / 2
    assert difference.value == pytest.approx(gap.sum())
    signs = np.random.default_rng(3).choice([-1, 1], (20_000, IMAGES))
    expected = np.mean(np.abs(signs @ gap) >= abs(gap.sum()) - 1e-12)
    assert difference.p == pytest.approx(expected, abs=0.02)


def test_comparisons_that_make_no_sense(tmp_path, capsys):
    folds = (0, 1.0, "--protocol", "5fold")
    path, other, again = reports(tmp_path, a=(0, 1.0), b=folds, c=(1, 1.0))
    for words, said in (
        ([path], "needs at least 2 runs, not 1"),
        ([path, path], "is given twice"),
        ([path, other], "are not of the same images, captions and protocol"),
        ([path, str(tmp_path)], "is no report: it has no report.json"),
        ([path, again, "--figures", "best"], "figure 'best' of a can't be tested; use i2t/r1,"),
        ([path, again, "--figures", "i2t/median_rank"], "figure 'i2t/median_rank' of a can't"),
    ):
        assert program.main(["compare", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    (tmp_path / "runs" / "b" / "report" / "report.json").write_text("{}")
    assert program.main(["compare", path, other]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give SCORES.npz, or --i2t, --t2i and --qrels"),
        (["--i2t", "x"], "need all of --i2t"),
        (["none.npz"], "none.npz is missing"),
        (["FILE", "--trec", "5"], "--trec=5 writes files; give --out too"),
        (["FILE", "--trec", "-5"], "--trec=-5; give 1 or more"),
        (["FILE", "--corrected"], "is no file name of COCO"),
        (["FILE", "--images", "none"], "none is no directory"),
        (["FILE", "--spice", "none.npy"], "none.npy is missing"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, capsys, words, said):
    file = tmp_path / "scores.npz"
    np.savez(file, scores=make_scores(), image_names=np.array([f"im{k}x.jpg" for k in range(20)]))
    words = [str(file) if word == "FILE" else word for word in words]
    assert program.main(["evaluate", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_failures_are_the_worst_and_a_draw_of_the_others():
    report = make_report(make_scores(strength=0.1))
    rank = report.tables["t2i"].rank()
    chosen = [failure.place for failure in choose_failures(report, "t2i", shown=10)]
    assert len(set(chosen)) == 10 and all(rank[k] >= 1 for k in chosen)
    worst = rank[chosen[:5]]
    assert worst.tolist() == sorted(rank, reverse=True)[:5]
    assert all(a <= b for a, b in itertools.pairwise(chosen[5:]))


def test_successes_are_drawn_from_the_queries_whose_best_result_is_right():
    scores = make_scores(strength=1.0)
    rows = make_collection().caption_rows()
    found = [example.place for example in choose_successes(make_report(scores), "t2i", shown=6)]
    assert len(set(found)) == 6 and found == sorted(found)
    assert all(scores[:, place].argmax() == rows[place] for place in found)
    assert choose_successes(make_report(np.ones_like(scores)), "t2i") == []


def test_reports_need_neither_jax_nor_tensorflow():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('jax', 'flax', 'tensorflow'))); "
        "import xmodal_jax.report.__main__"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@given(content=st.one_of(st.binary(max_size=80), st.text("abx01 .-e\n\t", max_size=80)))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_readers_end_with_one_line_whatever_a_file_holds(tmp_path, capsys, content):
    data = content if isinstance(content, bytes) else content.encode()
    for name in ("i2t", "t2i", "qrels", "scores.npz"):
        (tmp_path / name).write_bytes(data)
    qrels = tmp_path / "right"
    qrels.write_text("a 0 x 1\nb 0 x 1\n")
    runs = [f"--i2t={tmp_path / 'i2t'}", f"--t2i={tmp_path / 't2i'}"]
    for words in (
        [str(tmp_path / "scores.npz")],
        [*runs, f"--qrels={tmp_path / 'qrels'}"],
        [*runs, f"--qrels={qrels}"],
    ):
        assert program.main(["evaluate", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
    report = tmp_path / "report"
    report.mkdir(exist_ok=True)
    for name in ("report.json", "queries.npz"):
        (report / name).write_bytes(data)
    assert program.main(["compare", str(report), str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
