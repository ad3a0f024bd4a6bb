"""Sweeps: the members and their commands, and a tiny one as its users run it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_for_lines
from xmodal_jax import sweep

# ml_collections loads configuration files so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module.. method:DeprecationWarning")

ROOT = Path(__file__).parents[1]
STEPS = 30
CONFIG = f"""
from configs import demo

def get_config(variant="teran"):
    config = demo.get_config(variant)
    config.data.dir = "DATA"
    config.data.synthetic_sizes.update(train=64, dev=24, test=24)
    config.model.text.update(num_layers=1, width=16, num_heads=2, mlp_dim=16)
    config.model.update(region_layers=1, embed_dim=16, num_heads=2, mlp_dim=16)
    config.train.update(steps={STEPS}, batch_size=16, log_every=1)
    config.train.update(evaluate_every={STEPS}, checkpoint_every={STEPS})
    config.evaluate.batch_size = 8
    return config
"""


@pytest.fixture
def arguments(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.replace("DATA", str(tmp_path / "data")))
    return [f"--config={path}", f"--out={tmp_path / 'out'}"]


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=1")
    monkeypatch.chdir(ROOT)


def test_the_commands_are_those_a_user_types(capsys, tmp_path):
    words = ["--config=configs/demo.py", "--variants=teran,mean_pooled", "--seeds=2"]
    words += [f"--out={tmp_path}", "--dry_run", "--", "--config.train.steps=7"]
    assert sweep.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = []
    for seed in (0, 1):
        for variant in ("teran", "mean_pooled"):
            train = (
                f"{sys.executable} -m xmodal_jax.main --config=configs/demo.py:{variant} "
                f"--workdir={tmp_path}/{variant}/seed{seed} --config.seed={seed} "
                "--config.train.steps=7"
            )
            evaluate = (
                " --mode=evaluate --config.evaluate.split=test --config.evaluate.protocol=full"
            )
            expected += [train, train + evaluate]
    assert lines == expected
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "a_variant": (["--config=configs/demo.py:teran", "--variants=teran"], "has a variant"),
    "twice": (["--variants=teran,teran"], "a variant twice"),
    "no_name": (["--variants=teran,"], "without a name"),
    "seeds": (["--variants=teran", "--seeds=0"], "--seeds=0"),
    "seed": (["--variants=teran", "--", "--config.seed=3"], "--config.seed is set by the sweep"),
    "workdir": (["--variants=teran", "--", "--workdir", "x"], "--workdir is set by the sweep"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, capsys, case):
    words, said = MISTAKES[case]
    assert sweep.main(["--config=configs/demo.py", f"--out={tmp_path}", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_help_teaches(capsys):
    with pytest.raises(SystemExit, match="0"):
        sweep.main(["--help"])
    text = capsys.readouterr().out
    assert "-- --config.train.steps=2000" in text and "The same command continues" in text


def test_an_override_before_the_dashes_is_explained(tmp_path, capsys):
    words = ["--config=configs/demo.py", "--variants=teran", f"--out={tmp_path}"]
    with pytest.raises(SystemExit, match="2"):
        sweep.main([*words, "--config.train.steps=3"])
    assert "--config.train.steps=3 is no option of the sweep" in capsys.readouterr().err


def test_a_configuration_is_read_as_main_reads_it():
    found = sweep.load_config(
        ["--config=configs/demo.py:mean_pooled", "--config.seed=4", "--config.train.steps", "9"]
    )
    assert found is not None
    assert (found["seed"], found["train"]["steps"], found["model"]["pooling"]) == (4, 9, "mean")
    for wrong in ("--config.train.stepps=9", "--config.train.steps=many", "--config=none.py"):
        assert sweep.load_config(["--config=configs/demo.py", wrong]) is None
    assert sweep.load_config(["--config=configs/demo.py:teram"]) is None


def test_a_sweep_stops_continues_goes_on_after_failures_and_ends(arguments, tmp_path, capsys):
    out = tmp_path / "out"
    words = [*arguments, "--variants=teran,teram,mean_pooled"]
    process = subprocess.Popen(
        [sys.executable, "-m", "xmodal_jax.sweep", *words], stdout=subprocess.PIPE, text=True
    )
    wait_for_lines([process], out / "teran" / "seed0" / "metrics.jsonl", 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "[1/3] teran/seed0: stopped by SIGTERM after" in output and "[2/3]" not in output
    assert not (out / "mean_pooled").exists()
    log = out / "teran" / "seed0" / "output.txt"
    stopped = int(log.read_text().split("stopped by SIGTERM at step ")[1].split(";")[0])

    assert sweep.main(words) == 1
    printed = capsys.readouterr()
    assert f"continuing from step {stopped}" in log.read_text()
    assert "variant 'teram' is not known" in printed.out.splitlines()[1]
    assert printed.err.startswith("failed: teram/seed0, see ") and printed.err.count("\n") == 1
    header, *rows = [line.split() for line in printed.out.splitlines()[3:]]
    assert header[:6] == ["run", "kind", "parameters", "minutes", "scoring", "seeds"]
    assert [row[:2] for row in rows] == [["teran", "tokens"], ["mean_pooled", "vector"]]
    for variant, row in zip(("teran", "mean_pooled"), rows, strict=True):
        workdir = out / variant / "seed0"
        recorded = json.loads((workdir / "run.json").read_text())
        assert recorded["steps"] == STEPS and recorded["train_seconds"] > 0
        assert (recorded["devices"], recorded["device_kind"]) == (1, "cpu")
        assert row[2] == f"{recorded['parameters']:,}" and row[4:6] == ["exact", "1"]
        rsum = json.loads((workdir / "evaluation_test_full.json").read_text())["metrics"]["rsum"]
        assert row[header.index("rsum")] == f"{rsum:.1f}"

    # All but the one that failed is done: no process is started, nothing is written.
    words[-1] = "--variants=teran,mean_pooled"
    before = {path: os.stat(path).st_mtime_ns for path in out.rglob("*")}
    assert sweep.main([*words, "--dry_run"]) == 0
    expected = ["# teran/seed0 is finished", "# mean_pooled/seed0 is finished"]
    assert capsys.readouterr().out.splitlines() == expected
    assert sweep.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all("was finished, rsum" in line for line in lines[:2])
    assert lines[2:] == printed.out.splitlines()[3:]
    assert {path: os.stat(path).st_mtime_ns for path in out.rglob("*")} == before

    # A run that is older than a field of the configuration is finished all the same.
    path = out / "teran" / "seed0" / "config.json"
    config = json.loads(path.read_text())
    del config["evaluate"]["spice"], config["scorer"]
    path.write_text(json.dumps(config))
    assert sweep.main([*words, "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines() == expected

    # An evaluation of an older version, which wrote no report, is made again.
    report = out / "teran" / "seed0" / "report_test_full" / "report.json"
    report.rename(report.with_suffix(".aside"))
    assert sweep.main([*words, "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == expected[1:]
    report.with_suffix(".aside").rename(report)

    # Another configuration is not taken for the one that is done: main is asked, and refuses.
    assert sweep.main([*words, "--dry_run", "--", "--config.train.steps=40"]) == 0
    assert "is finished" not in capsys.readouterr().out
