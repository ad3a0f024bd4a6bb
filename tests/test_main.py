"""The program as its users run it: train, stop, resume, evaluate, export, and mistakes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import programs
from tests.waiting import wait_for_lines
from xmodal_jax import export
from xmodal_jax.report import __main__ as report_program

# One device, as on a laptop; test_partitioning.py has the meshes.
ENVIRONMENT = {"XLA_FLAGS": "--xla_backend_optimization_level=1"}

STEPS = 30
CONFIG = f"""
from configs import demo

def get_config(variant="teran"):
    config = demo.get_config(variant)
    config.data.dir = "DATA"
    config.data.synthetic_sizes.update(train=64, dev=24, test=24)
    config.model.text.update(num_layers=1, width=16, num_heads=2, mlp_dim=16, dropout=0.1)
    config.model.update(region_layers=1, embed_dim=16, num_heads=2, mlp_dim=16, dropout=0.1)
    config.augment.update(region_dropout=0.1, token_masking=0.1)
    config.train.update(steps={STEPS}, batch_size=16, log_every=1)
    config.train.update(evaluate_every=10, checkpoint_every=5)
    config.evaluate.batch_size = 8
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("main")
    path = directory / "tiny.py"
    path.write_text(CONFIG.replace("DATA", str(directory / "data")))
    return path


def arguments(config, workdir, *others):
    return f"--config={config}", f"--workdir={workdir}", *others


def run(config, workdir, *others, expect=0):
    return programs.run(*arguments(config, workdir, *others), expect=expect, **ENVIRONMENT)


def final_state(workdir):
    manager = ocp.CheckpointManager(workdir.absolute() / "checkpoints")
    assert manager.latest_step() == STEPS
    return manager.restore(STEPS, args=ocp.args.StandardRestore())


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    programs.run_real(*arguments(config, workdir), **ENVIRONMENT)
    return workdir


def assert_same_run(workdir, finished):
    ours, theirs = final_state(workdir), final_state(finished)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert (workdir / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_kill_nine_thrice_and_resume_is_bit_exact(config, finished, tmp_path):
    workdir = tmp_path / "killed"
    # Random moments, but those of the last failure can be run again.
    lines = sorted(np.random.default_rng(int(time.time())).choice(np.arange(2, STEPS), 3, False))
    print("killed once the log had lines:", lines)
    for line in lines:
        program = programs.start(*arguments(config, workdir), **ENVIRONMENT)
        wait_for_lines([program], workdir / "metrics.jsonl", line)
        program.kill()
        program.communicate()
        assert program.returncode == -signal.SIGKILL
    output, _ = run(config, workdir)
    assert "continuing from step" in output
    assert_same_run(workdir, finished)


def test_sigterm_saves_and_the_same_command_continues(config, finished, tmp_path):
    workdir = tmp_path / "stopped"
    program = programs.start(*arguments(config, workdir), **ENVIRONMENT)
    wait_for_lines([program], workdir / "metrics.jsonl", 3)
    program.send_signal(signal.SIGTERM)
    output, _ = program.communicate(timeout=60)
    assert program.returncode == 0 and "stopped by SIGTERM at step" in output
    stopped = int(output.split("at step ")[1].split(";")[0])
    assert f"continuing from step {stopped}" in run(config, workdir)[0]
    assert_same_run(workdir, finished)


def test_the_log_has_every_step_and_the_loss_falls(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert np.mean([losses[s] for s in range(25, 31)]) < np.mean([losses[s] for s in range(1, 7)])
    found = [row for row in rows if "dev/rsum" in row]
    assert [row["step"] for row in found] == [10, 20, 30]
    for row in found:
        recalls = [row[f"dev/{d}/r{k}"] for d in ("i2t", "t2i") for k in (1, 5, 10)]
        assert row["dev/rsum"] == pytest.approx(sum(recalls))


def test_a_finished_run_does_nothing_more(config, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    run(config, finished)
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_evaluate_takes_the_best_step(config, finished):
    output, _ = run(config, finished, "--mode=evaluate")
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    best = max((row for row in rows if "dev/rsum" in row), key=lambda row: row["dev/rsum"])
    written = json.loads((finished / "evaluation_dev_full.json").read_text())
    assert written["step"] == best["step"] and f"step {best['step']}" in output
    for name, value in written["metrics"].items():
        assert value == pytest.approx(best["dev/" + name])


def test_a_workdir_that_holds_a_run_needs_no_config(finished, tmp_path):
    words = "--mode=evaluate", "--config.evaluate.split=test"
    output, _ = programs.run("--workdir", str(finished), *words, **ENVIRONMENT)
    assert (finished / "evaluation_test_full.json").exists() and "test split" in output
    changed = "--config.model.top_layers=1"
    _, error = programs.run(f"--workdir={finished}", *words, changed, expect=2, **ENVIRONMENT)
    assert "belongs to a run with model.top_layers=0, not 1" in error
    _, error = programs.run(f"--workdir={tmp_path}", *words[:1], expect=2, **ENVIRONMENT)
    assert error.startswith("error: --config is missing") and error.count("\n") == 1
    (tmp_path / "config.json").write_text("{")
    _, error = programs.run(f"--workdir={tmp_path}", *words[:1], expect=2, **ENVIRONMENT)
    assert "config.json is not JSON" in error and error.count("\n") == 1


def test_evaluate_writes_a_report_that_can_be_made_again(config, finished, tmp_path):
    words = "--config.evaluate.probes=True", "--config.evaluate.alignments=True"
    words += "--config.evaluate.save_scores=True", "--config.evaluate.teran_parity=True"
    output, _ = run(config, finished, "--mode=evaluate", *words)
    report = finished / "report_dev_full"
    assert f"open {report / 'report.html'}" in output and "all words shuffled" in output
    # Words and regions of failures, on blank sheets.
    assert 'src="data:image/webp' in (report / "report.html").read_text()
    content = json.loads((report / "report.json").read_text())
    written = json.loads((finished / "evaluation_dev_full.json").read_text())["metrics"]
    for name, figure in (content["figures"] | content["fine_grained"]).items():
        if name in written:
            assert figure["value"] == pytest.approx(written.pop(name))
            assert (
                name.endswith("median_rank") or figure["low"] <= figure["value"] <= figure["high"]
            )
    assert not written
    assert {"pointing", "probes/relations"} <= content["fine_grained"].keys()
    with (report / "queries_t2i.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == content["about"]["captions"]
    words = [entry.split(":")[0] for entry in rows[0]["alignment"].split()]
    assert "".join(words) in rows[0]["caption"].replace(" ", "")
    # From the saved scores, by a program that knows nothing of the model.
    arguments = ["evaluate", str(report / "scores.npz"), "--out", str(tmp_path), "--teran-parity"]
    assert report_program.main(arguments) == 0
    again = json.loads((tmp_path / "report.json").read_text())
    for name in ("figures", "teran_parity", "diagnostics", "notes"):
        assert again[name] == content[name]


def test_export_encodes_and_scores(config, finished):
    from data_pipeline import input_pipeline, region_captions

    run(config, finished, "--mode=export")
    model = export.load(finished / "export")
    dataset = region_captions.open_dataset(config.parent / "data", "scenes")
    images = next(input_pipeline.image_batches(dataset, split="dev", batch_size=24, max_regions=16))
    captions = next(
        input_pipeline.caption_batches(
            dataset, split="dev", tokenizer=model.tokenizer, batch_size=120, max_tokens=26
        )
    )
    encoded = model.encode_image(images["regions"], images["boxes"], images["region_mask"])
    texts = next(iter(dataset.as_dataset(split="dev").take(1)))["captions"].numpy()
    first = model.encode_text([text.decode() for text in texts])
    scores = model.scores(encoded, first)
    # The same pairs by an independent path: numpy over the embeddings.
    regions, words = np.asarray(encoded.tokens), np.asarray(first.tokens)
    for i in range(3):
        for c in range(len(texts)):
            sim = regions[i][np.asarray(encoded.mask[i])] @ words[c][np.asarray(first.mask[c])].T
            np.testing.assert_allclose(scores[i, c], sim.max(0).mean(), atol=1e-5)
    assert captions["tokens"].shape == (120, 26)
    with pytest.raises(ValueError, match="this model takes"):
        model.encode_image(images["regions"][..., :5], images["boxes"])


def test_an_export_of_several_devices_loads_on_one(config, finished, tmp_path):
    several = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    workdir = tmp_path / "w"
    shutil.copytree(finished, workdir)
    programs.run(*arguments(config, workdir, "--mode=export"), **several)
    code = f"import xmodal_jax.export as e; m = e.load({str(workdir / 'export')!r}); "
    code += "assert m.encode_text(['a red star', 'x']).tokens.shape[0] == 2"
    subprocess.run([sys.executable, "-c", code], env=os.environ | ENVIRONMENT, check=True)
    words = "--mode=evaluate", f"--config.init_from={workdir / 'export'}"
    run(config, tmp_path / "same", *words)
    assert (tmp_path / "same" / "evaluation_dev_full.json").exists()
    _, error = run(config, tmp_path / "other", *words, "--config.model.top_layers=1", expect=2)
    assert "is another model: only one of the two has image_top/layer_0" in error


MISTAKES = {
    "field": (["--config.train.stepps=3"], "no field 'stepps'; did you mean 'steps'?"),
    "far_field": (["--config.train.qqqqqqqq=3"], "no field 'qqqqqqqq'"),
    "value": (["--config.train.steps=many"], "config.train.steps=many"),
    "file": (["--config=configs/none.py"], "configs/none.py does not exist"),
    "argument": (["train"], "argument 'train' is not known"),
    "protocol": (["--config.evaluate.protocol=7fold"], "evaluate.protocol='7fold'"),
    "no_variant": (["--config=configs/demo.py:teram"], "variant 'teram' is not known"),
    "batch": (["--config.train.batch_size=1000"], "batch_size=1000"),
    "data": (["--config.data.name=nothing", "--config.data.build_synthetic=False"], "build"),
    "loss": (["--config.loss.kind=triplet"], "loss.kind='triplet'"),
    "mode": (["--mode=tran"], "tran"),
    "split": (["--mode=evaluate", "--config.evaluate.split=val"], "val"),
    "alignment": (["--config.model.alignment=MaxMax"], "'MaxMax' is not one of MrSw"),
    "weights": (["--config.init_from=none.safetensors"], "none.safetensors does not exist"),
    "heads": (["--config.model.num_heads=5"], "model.num_heads=5 does not divide"),
    "dtype": (["--config.model.dtype=bf16"], "model.dtype='bf16' is not one of float32"),
    "every": (["--config.train.evaluate_every=0"], "train.evaluate_every=0; give 1 or more"),
    "tokens": (["--config.data.max_tokens=600"], "data.max_tokens=600 is more than"),
    "regex": (["--config.optimizer.frozen=('(',)"], "'(' is no regular expression"),
    "a_file": (["--workdir=README.md"], "README.md"),
    "untrained": (["--mode=evaluate"], "has no checkpoint"),
    "export": (["--config.init_from=configs"], "is not an export"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(config, finished, tmp_path, case):
    words, said = MISTAKES[case]
    _, error = run(config, tmp_path / "w", *words, expect=2)
    assert said in error, error
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("error: ")


def test_a_workdir_of_another_configuration_is_refused(config, finished):
    _, error = run(config, finished, "--config.optimizer.learning_rate=0.5", expect=2)
    assert "optimizer.learning_rate=0.002, not 0.5" in error


def test_a_start_that_failed_can_be_corrected(config, tmp_path):
    run(config, tmp_path / "w", "--config.evaluate.split=val", expect=2)
    run(config, tmp_path / "w", "--config.train.steps=2")


def test_non_finite_loss_stops_with_step_and_images(config, tmp_path):
    _, error = run(
        config,
        tmp_path / "w",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.clip_norm=0",
        "--config.optimizer.warmup_steps=0",
        expect=2,
    )
    assert "the update was not applied" in error
    assert "at step" in error and "images:" in error
