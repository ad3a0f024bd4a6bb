"""The table of runs, and the metric log it reads."""

import json

import pytest

from xmodal_jax import results
from xmodal_jax.metric_writer import MetricWriter

NAMES = [f"{d}/r{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)]


def write_log(workdir, rsums):
    workdir.mkdir()
    writer = MetricWriter(workdir)
    for step, rsum in rsums.items():
        writer.write(step - 1, {"loss": 1.0})
        values = dict.fromkeys(NAMES, rsum / 6) | {"rsum": rsum}
        writer.write(step, {f"dev/{k}": v for k, v in values.items()})
    writer.close()


def test_the_best_evaluation_of_each_run_is_shown(tmp_path, capsys):
    write_log(tmp_path / "one", {10: 60.0, 20: 90.0, 30: 72.0})
    write_log(tmp_path / "two", {10: 120.0})
    assert results.main([str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["run", "split", "step", *NAMES, "rsum"]
    assert lines[1] == ["one", "dev", "20", *["15.0"] * 6, "90.0"]
    assert lines[2] == ["two", "dev", "10", *["20.0"] * 6, "120.0"]


def test_an_evaluation_of_a_split_as_markdown(tmp_path, capsys):
    metrics = dict.fromkeys(NAMES, 50.0) | {"rsum": 300.0, "pointing": 12.34}
    content = {"step": 7, "split": "test", "protocol": "5fold", "metrics": metrics}
    (tmp_path / "evaluation_test_5fold.json").write_text(json.dumps(content))
    arguments = [str(tmp_path), "--split", "test", "--protocol", "5fold", "--markdown"]
    assert results.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "| " + " | ".join(["---"] * 11) + " |"
    assert lines[2].endswith("| 300.0 | 12.3 |")


@pytest.mark.parametrize(("arguments", "said"), [([], "metrics.jsonl"), (["--split", "x"], "x")])
def test_a_missing_run_is_one_line(tmp_path, capsys, arguments, said):
    assert results.main([str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_the_log_is_cut_back_when_a_run_resumes(tmp_path):
    first = MetricWriter(tmp_path)
    for step in (1, 2, 3):
        first.write(step, {"loss": step / 2})
    first.close()
    log = tmp_path / "metrics.jsonl"
    # A kill may leave a line that is not whole.
    log.write_text(log.read_text() + '{"step": 4, "lo')
    second = MetricWriter(tmp_path, start_step=2)
    second.write(3, {"loss": 9.0})
    second.close()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 9.0},
    ]
