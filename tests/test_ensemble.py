"""Ensembles: the mean against numpy, of stubs and of two tiny runs, and what a user gets wrong."""

import json
import tracemalloc

import jax
import numpy as np
import pytest

from configs import demo
from data_pipeline import entities, input_pipeline
from data_pipeline.entities import Entities
from xmodal_jax import ensemble, results
from xmodal_jax import experiment as experiment_lib
from xmodal_jax.checkpoint import Checkpointer
from xmodal_jax.ensemble import Member, mean_scores
from xmodal_jax.errors import UserError
from xmodal_jax.evaluate import evaluate
from xmodal_jax.evaluators.pointing import PointingEvaluator
from xmodal_jax.evaluators.retrieval import RetrievalEvaluator
from xmodal_jax.experiment import Experiment
from xmodal_jax.metrics.parts import metrics_of_parts, parts_of
from xmodal_jax.report.files import read_report
from xmodal_jax.scoring import describe, scoring_name
from xmodal_jax.workdir import claim_workdir, read_config

IDS = np.arange(10)
CAPTION_IDS = np.repeat(IDS, 2)


def stub(workdir, seed=0, scale=1.0, **changes):
    scores = scale * np.random.default_rng(seed).normal(size=(10, 20)).astype(np.float32)
    values = dict(
        workdir=workdir,
        dataset="scenes",
        step=seed,
        kind="tokens",
        scores=scores,
        image_ids=IDS,
        caption_image_ids=CAPTION_IDS,
    )
    return Member(**values | changes)


def make_workdir(path, config=None):
    (path / "best" / "7").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


def make_stub_runs(tmp_path, monkeypatch, **members):
    """Workdirs whose scores are those of the given members."""
    for name in members:
        make_workdir(tmp_path / name)
    monkeypatch.setattr(ensemble, "score_member", lambda workdir, *_: members[workdir.name])
    return [str(tmp_path / name) for name in members]


@pytest.mark.parametrize("block", [1, 70, 2**20])
def test_the_mean_equals_loops(tmp_path, monkeypatch, block):
    members = [stub(tmp_path / str(seed), seed) for seed in range(3)]
    monkeypatch.setattr(ensemble, "_BLOCK_SCORES", block)
    found = mean_scores(iter(members))
    assert found.scores.dtype == np.float32
    for i in range(10):
        for c in range(20):
            mean = sum(float(m.scores[i, c]) for m in members) / 3
            assert found.scores[i, c] == pytest.approx(mean, rel=0, abs=1e-6)
    assert [member.step for member in found.members] == [0, 1, 2]
    deviations = [np.std(m.scores, dtype=np.float64) for m in members]
    assert found.deviations == pytest.approx(deviations, rel=1e-12)
    assert members[0].scores is not found.scores
    np.testing.assert_array_equal(members[0].scores, stub(tmp_path, 0).scores)


def test_an_ensemble_holds_two_matrices(tmp_path, monkeypatch):
    # Of float32: that of the member at hand and the sum; and blocks beside them.
    monkeypatch.setattr(ensemble, "_BLOCK_SCORES", 2**12)
    count, shape = 3, (200, 1600)
    ids, owners = np.arange(200), np.repeat(np.arange(200), 8)
    scores = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def members():
        for k in range(count):
            whose = dict(image_ids=ids, caption_image_ids=owners)
            yield stub(tmp_path / str(k), scores=scores.copy(), **whose)

    tracemalloc.start()
    mean_scores(members(), standardize=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2 * scores.nbytes < peak < 2.1 * scores.nbytes


def test_standardised_members_count_alike(tmp_path):
    # A power of two, by which float32 is scaled without rounding.
    a, b = stub(tmp_path / "a", 0), stub(tmp_path / "b", 1, scale=128)
    found = mean_scores([a, b], standardize=True)
    again = mean_scores([a, stub(tmp_path / "b", 1)], standardize=True)
    np.testing.assert_allclose(found.scores, again.scores, rtol=1e-12)
    expected = (a.scores / a.scores.std() + b.scores / b.scores.std()) / 2
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(image_ids=IDS[::-1]), "have not the same images"),
        (dict(caption_image_ids=CAPTION_IDS[::-1]), "have not the same captions"),
        (dict(scores=np.full((10, 20), np.nan)), "not finite; leave it out"),
        (dict(scores=np.ones((10, 20))), "every pair the same score"),
    ],
)
def test_members_that_do_not_fit(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        mean_scores([stub(tmp_path / "a"), stub(tmp_path / "b", **changes)], standardize=True)
    assert str(tmp_path / "b") in str(error.value) and "\n" not in str(error.value)


def test_other_data_of_the_same_ids_is_warned_of(tmp_path, capsys):
    mean_scores([stub(tmp_path / "a"), stub(tmp_path / "b", dataset="flickr8k")])
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and "'flickr8k'" in error and error.count("\n") == 1


def test_scales_that_differ_are_warned_of(tmp_path, monkeypatch, capsys):
    members = dict(cosine=stub(tmp_path, 0, 0.1), sum=stub(tmp_path, 1, 10))
    workdirs = make_stub_runs(tmp_path, monkeypatch, **members)
    assert ensemble.main([*workdirs, "--split", "test"]) == 0
    error = capsys.readouterr().err
    assert "scores of sum vary" in error and "add --standardize" in error
    assert error.startswith("warning: ") and error.count("\n") == 1
    assert ensemble.main([*workdirs, "--split", "test", "--standardize"]) == 0
    assert capsys.readouterr().err == ""
    names = {path.name for path in tmp_path.glob("*.json")}
    assert names == {
        "ensemble_cosine+sum_test_full.json",
        "ensemble_cosine+sum_test_full_standardized.json",
    }


def test_the_result_is_labelled_and_can_be_tabled(tmp_path, monkeypatch, capsys):
    members = dict(a=stub(tmp_path, 0), b=stub(tmp_path, 1, kind="pair"))
    workdirs = make_stub_runs(tmp_path, monkeypatch, **members)
    out = tmp_path / "new" / "both.json"
    arguments = [*workdirs, "--split", "dev", "--protocol", "5fold", "--out", str(out)]
    assert ensemble.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "ensemble of 2 runs: a + b" in printed and "dev split, protocol 5fold" in printed
    content = json.loads(out.read_text())
    assert content["ensemble"] is True and content["members"] == workdirs
    assert content["steps"] == [0, 1] and content["kinds"] == ["tokens", "pair"]
    mean = (members["a"].scores + members["b"].scores) / 2
    expected = metrics_of_parts(parts_of(mean, IDS, CAPTION_IDS, "5fold"))
    assert content["metrics"] == pytest.approx(expected)
    assert results.main([str(out)]) == 0
    assert "ensemble: a + b" in capsys.readouterr().out
    report = read_report(tmp_path / "new" / "both_report")
    assert report.content["about"]["members"] == workdirs
    assert report.figures["rsum"].value == pytest.approx(content["metrics"]["rsum"])
    assert report.figures["rsum"].spread > 0


MISTAKES = {
    "one": (["a"], "needs at least 2 runs, not 1; give more"),
    "twice": (["a", "a/../a"], "is given twice; give each run once"),
    "no_run": (["a", "none"], "none is not the workdir of a run: it has no config.json"),
    "untrained": (["a", "untrained"], "untrained has no checkpoint; train it first"),
    "broken": (["a", "broken"], "config.json is not JSON"),
    "directory": (["a", "b", "--out", "."], "is a directory; give a file name"),
    "long": (["a", "x" * 120, "y" * 120], "make a long file name; give --out"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, case):
    arguments, said = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "broken", "x" * 120, "y" * 120):
        make_workdir(tmp_path / name)
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "config.json").write_text("{}")
    assert ensemble.main([*arguments, "--split", "test"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        ensemble.main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "python -m xmodal_jax.ensemble runs/" in shown
    assert "for pair models" in shown


def test_a_configuration_survives_json(tmp_path):
    config = demo.get_config()
    with config.unlocked():
        config.optimizer.multipliers = (("^bert/", 0.1), ("x", 2.0))
        config.optimizer.decay_steps = (1, 2)
        config.data.synthetic_sizes = {"train": 3}
    claim_workdir(tmp_path, config)
    found = read_config(tmp_path)
    assert found.to_dict() == config.to_dict()
    assert found.optimizer.multipliers == (("^bert/", 0.1), ("x", 2.0))


def test_fields_newer_than_a_run_have_their_defaults(tmp_path):
    saved = json.loads(json.dumps(demo.get_config().to_dict()))
    del saved["evaluate"]["rerank_top_k"], saved["augment"], saved["model"]["top_layers"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    found = read_config(tmp_path)
    assert found.evaluate.rerank_top_k == 0 and found.augment.region_dropout == 0
    assert "top_layers" not in found.model


def tiny(data, **model):
    config = demo.get_config()
    config.data.dir = str(data)
    config.data.synthetic_sizes.update(train=16, dev=10, test=10)
    config.model.text.update(num_layers=1, width=16, num_heads=2, mlp_dim=16)
    config.model.update(region_layers=1, embed_dim=16, num_heads=2, mlp_dim=16)
    config.model.update(model)
    config.train.update(steps=2, batch_size=8)
    config.evaluate.batch_size = 8
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of different models as training leaves them: configuration and best parameters."""
    directory = tmp_path_factory.mktemp("ensemble")
    variants = {"words": {}, "pooled": {"score": "pooled", "embed_dim": 32}}
    out = {}
    for step, (name, model) in enumerate(variants.items(), 5):
        workdir, config = directory / name, tiny(directory / "data", **model)
        claim_workdir(workdir, config)
        experiment = Experiment.create(config)
        params = experiment.new_state().params
        checkpointer = Checkpointer(workdir)
        checkpointer.save_best(step, params, 1.0)
        checkpointer.close()
        out[workdir] = (experiment, jax.device_get(params))
    return out


def scores_by_loops(experiment, params):
    """Scores [I, C] on the test split, and the image ids of both sides."""
    data, variables = experiment.config.data, {"params": params}
    images = next(
        input_pipeline.image_batches(
            experiment.dataset, split="test", batch_size=10, max_regions=data.max_regions
        )
    )
    captions = next(
        input_pipeline.caption_batches(
            experiment.dataset,
            split="test",
            tokenizer=experiment.tokenizer,
            batch_size=50,
            max_tokens=data.max_tokens,
        )
    )
    image = experiment.model.apply(variables, images, method="encode_image")
    text = experiment.model.apply(variables, captions, method="encode_text")
    scores = np.zeros((10, 50))
    for i in range(10):
        regions = np.asarray(image.tokens[i])[np.asarray(image.mask[i])]
        for c in range(50):
            words = np.asarray(text.tokens[c])[np.asarray(text.mask[c])]
            if experiment.config.model.score == "pooled":
                scores[i, c] = np.asarray(image.pooled[i]) @ np.asarray(text.pooled[c])
            else:
                scores[i, c] = (regions @ words.T).max(0).mean()
    assert captions["mask"].all()
    return scores, images["image_id"], captions["image_id"]


@pytest.mark.parametrize("standardize", [False, True])
def test_two_runs_equal_numpy(runs, tmp_path, standardize):
    out = tmp_path / "both.json"
    arguments = [*map(str, runs), "--split", "test", "--protocol", "5fold", "--out", str(out)]
    assert ensemble.main(arguments + ["--standardize"] * standardize) == 0
    content = json.loads(out.read_text())
    assert content["steps"] == [5, 6] and content["kinds"] == ["tokens", "vector"]
    parts = [scores_by_loops(*run) for run in runs.values()]
    deviations = [scores.std() for scores, *_ in parts]
    assert content["standard_deviations"] == pytest.approx(deviations, rel=1e-4)
    scaled = [x / d if standardize else x for (x, *_), d in zip(parts, deviations, strict=True)]
    expected = metrics_of_parts(parts_of(sum(scaled) / 2, *parts[0][1:], "5fold"))
    assert content["metrics"] == pytest.approx(expected)


def test_a_split_that_is_not_there(runs, capsys):
    assert ensemble.main([*map(str, runs), "--split", "val"]) == 2
    error = capsys.readouterr().err
    assert "val" in error and error.startswith("error: ") and error.count("\n") == 1


def test_an_evaluation_says_how_it_was_scored(runs, capsys):
    workdir, (experiment, params) = next(iter(runs.items()))
    config = experiment.config.copy_and_resolve_references()
    config.evaluate.split = "test"
    found = evaluate(config, workdir)
    assert "model of kind tokens, exact" in capsys.readouterr().out
    content = json.loads((workdir / "evaluation_test_full.json").read_text())
    assert content["kind"] == "tokens" and content["scoring"] == "exact"
    assert content["step"] == 5 and content["metrics"] == found
    scores, *ids = scores_by_loops(experiment, params)
    expected = metrics_of_parts(parts_of(scores, *ids, "full"))
    assert {k: v for k, v in found.items() if k != "pointing"} == pytest.approx(expected)
    config.evaluate.score = "pooled"
    pooled = evaluate(config, workdir)
    assert "model of kind tokens, first stage only" in capsys.readouterr().out
    content = json.loads((workdir / "evaluation_test_full_pooled.json").read_text())
    assert content["scoring"] == "pooled" and content["metrics"] == pooled != found
    config.evaluate.update(score="model", rerank_top_k=5)
    with pytest.raises(UserError, match="kind 'tokens' is scored exactly"):
        evaluate(config, workdir)


def test_what_is_missing_is_said_before_anything_is_scored(runs, tmp_path, monkeypatch):
    workdir, (experiment, _) = next(iter(runs.items()))
    config = experiment.config.copy_and_resolve_references()
    config.evaluate.split = "test"

    def refused(said, **changes):
        with config.unlocked():
            config.evaluate.update(changes)
        with pytest.raises(UserError, match=said) as error:
            evaluate(config, workdir)
        assert "\n" not in str(error.value)

    def never(*_):
        raise AssertionError("scored")

    monkeypatch.setattr(RetrievalEvaluator, "scored_split", never)
    monkeypatch.setattr(PointingEvaluator, "outcomes", never)
    refused("has no .*, nor any other image of this split", images=str(tmp_path))
    refused("none.npy is missing", images="", spice=str(tmp_path / "none.npy"))
    # Data without boxes: 0 % would be no figure of the model.
    read = lambda directory, names, captions: Entities([[] for own in captions for _ in own], 0)
    monkeypatch.setattr(entities, "read_entities", read)
    changes = dict(spice="", entities=str(tmp_path))
    refused("has no phrase with a box of split test; give the directory", **changes)
    opened = experiment_lib.open_dataset

    def without_boxes(section):
        found = opened(section)
        found.info.metadata["splits"]["test"]["with_boxes"] = 0
        return found

    monkeypatch.setattr(experiment_lib, "open_dataset", without_boxes)
    refused("entities=.*: no image of split test of 'scenes' has boxes of its regions")


def test_re_ranking_is_named():
    config = demo.get_config("cmsei")
    config.evaluate.rerank_top_k = 50
    assert describe(scoring_name(config.evaluate)) == "re-ranked 50 of the first stage"
