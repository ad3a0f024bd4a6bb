"""The tables of runs, and the metric log and record they read."""

import json
import time

import numpy as np
import pytest

from xmodal_jax import results, run_record
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


def write_run(workdir, seed, rsum, record=None, **fields):
    workdir.mkdir(parents=True)
    config = {"seed": seed, "train": {"steps": 30, **fields}}
    (workdir / "config.json").write_text(json.dumps(config))
    metrics = {"rsum": rsum, "t2i/r1": rsum / 10, "t2i/median_rank": 3.0}
    content = {"step": 30, "split": "test", "protocol": "full", "metrics": metrics}
    (workdir / "evaluation_test_full.json").write_text(json.dumps(content))
    if record is not None:
        (workdir / "run.json").write_text(json.dumps(record))


def record(seconds, kind="tokens"):
    return {"kind": kind, "parameters": 1234567, "train_seconds": seconds}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def grouped(capsys, *arguments, expect=0):
    words = ["--split", "test", "--group", "--markdown", *(str(a) for a in arguments)]
    assert results.main(words) == expect
    return capsys.readouterr()


def test_seeds_become_mean_and_spread(tmp_path, capsys):
    rsums = [270.0, 275.5, 281.7]
    for seed, rsum in enumerate(rsums):
        write_run(tmp_path / "teran" / f"seed{seed}", seed, rsum, record(60.0 * (seed + 1)))
    write_run(tmp_path / "vse" / "seed0", 0, 200.0)
    lines = grouped(capsys, *sorted(tmp_path.glob("*/seed*"))).out.splitlines()
    assert cells(lines[0]) == [
        "run", "kind", "parameters", "minutes", "scoring", "seeds", "t2i/r1", "rsum"
    ]  # fmt: skip
    mean, spread = np.mean(rsums), np.std(rsums, ddof=1)
    assert cells(lines[2]) == [
        "teran", "tokens", "1,234,567", "2.0", "exact", "3",
        f"{mean / 10:.1f} ± {spread / 10:.1f}", f"{mean:.1f} ± {spread:.1f}",
    ]  # fmt: skip
    # Older runs recorded nothing; one seed has no spread.
    assert cells(lines[3]) == ["vse", "", "", "", "exact", "1", "20.0", "200.0"]


def test_columns_are_chosen(tmp_path, capsys):
    write_run(tmp_path / "teran" / "seed0", 0, 200.0, record(90.0))
    chosen = "--columns=rsum,t2i/median_rank"
    lines = grouped(capsys, tmp_path / "teran" / "seed0", chosen).out.splitlines()
    assert cells(lines[0])[6:] == ["rsum", "t2i/median_rank"]
    assert cells(lines[2])[3:] == ["1.5", "exact", "1", "200.0", "3.0"]
    error = grouped(capsys, tmp_path / "teran" / "seed0", "--columns=rsun", expect=2).err
    assert "'rsun' is in no result; use rsum, t2i/median_rank, t2i/r1" in error


def test_runs_that_differ_in_more_than_the_seed_are_no_group(tmp_path, capsys):
    write_run(tmp_path / "teran" / "seed0", 0, 200.0)
    write_run(tmp_path / "teran" / "seed1", 1, 210.0, batch_size=64)
    error = grouped(capsys, *sorted(tmp_path.glob("*/*")), expect=2).err
    assert "train.batch_size=64" in error and error.count("\n") == 1


def test_a_seed_counts_once(tmp_path, capsys):
    for name in ("seed0", "copy"):
        write_run(tmp_path / "teran" / name, 0, 200.0)
    assert "both have seed=0" in grouped(capsys, *tmp_path.glob("*/*"), expect=2).err


def test_runs_of_several_directories_have_names_of_their_own(tmp_path, capsys):
    paths = [tmp_path / variant / "seed0" for variant in ("teran", "vse")]
    for path in paths:
        write_run(path, 0, 200.0)
    assert results.main([*map(str, paths), "--split", "test", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [cells(line)[0] for line in lines[2:]] == ["teran/seed0", "vse/seed0"]


@pytest.fixture
def ensemble(tmp_path):
    content = {
        "ensemble": True, "members": ["runs/teran/seed0", "runs/vse/seed0"], "split": "test",
        "protocol": "full", "metrics": {"rsum": 300.0, "t2i/r1": 31.0},
    }  # fmt: skip
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(content))
    return path


def test_an_ensemble_is_a_row(tmp_path, capsys, ensemble):
    write_run(tmp_path / "teran" / "seed0", 0, 200.0)
    arguments = [str(tmp_path / "teran" / "seed0"), str(ensemble)]
    assert results.main([*arguments, "--split=test", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cells(lines[2]) == ["seed0", "test", "30", "20.0", "200.0"]
    name = "ensemble: teran/seed0 + vse/seed0"
    assert cells(lines[3]) == [name, "test", "", "31.0", "300.0"]
    lines = grouped(capsys, *arguments).out.splitlines()
    assert cells(lines[3]) == [name, "", "", "", "exact", "", "31.0", "300.0"]


def test_what_is_no_ensemble_is_refused(tmp_path, capsys, ensemble):
    write_run(tmp_path / "run", 0, 200.0)
    file = tmp_path / "run" / "evaluation_test_full.json"
    assert "give the workdir" in grouped(capsys, file, expect=2).err
    assert results.main([str(ensemble), "--split=dev"]) == 2
    assert "is of test full, not of dev full" in capsys.readouterr().err
    ensemble.write_text("no JSON")
    assert "is not JSON" in grouped(capsys, ensemble, expect=2).err


FACTS = {"kind": "tokens", "parameters": 7}


def test_the_record_adds_the_parts_of_a_run(tmp_path, monkeypatch):
    clock = iter([100.0, 103.0, 105.0, 1000.0, 1002.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    first = run_record.RunRecord(tmp_path, 0, FACTS)
    first.write(5)
    assert run_record.read(tmp_path) == FACTS | {"steps": 5, "train_seconds": 3.0}
    first.write(10)
    second = run_record.RunRecord(tmp_path, 10, FACTS)
    second.write(15)
    assert run_record.read(tmp_path) == FACTS | {"steps": 15, "train_seconds": 7.5}


def test_a_part_that_trains_nothing_changes_no_record(tmp_path):
    run_record.RunRecord(tmp_path, 0, FACTS).write(5)
    before = run_record.read(tmp_path)
    run_record.RunRecord(tmp_path, 5, {"kind": "other"}).write(5)
    assert run_record.read(tmp_path) == before


def test_the_time_of_a_run_that_began_without_a_record_is_unknown(tmp_path):
    run_record.RunRecord(tmp_path, 5, FACTS).write(6)
    assert run_record.read(tmp_path) == FACTS | {"steps": 6, "train_seconds": None}


def test_the_scoring_a_run_is_configured_for_counts(tmp_path, capsys):
    workdir = tmp_path / "cmsei" / "seed0"
    write_run(workdir, 0, 250.0)
    exact = workdir / "evaluation_test_full.json"
    content = json.loads(exact.read_text()) | {"metrics": {"rsum": 240.0}}
    (workdir / "evaluation_test_full_rerank20.json").write_text(json.dumps(content))
    config = json.loads((workdir / "config.json").read_text())
    config |= {"evaluate": {"score": "model", "rerank_top_k": 20}}
    (workdir / "config.json").write_text(json.dumps(config))
    lines = grouped(capsys, workdir, "--columns=rsum").out.splitlines()
    assert cells(lines[2])[4:] == ["rerank20", "1", "240.0"]
    lines = grouped(capsys, workdir, "--columns=rsum", "--scoring=exact").out.splitlines()
    assert cells(lines[2])[4:] == ["exact", "1", "250.0"]
    assert (
        "_pooled.json does not exist" in grouped(capsys, workdir, "--scoring=pooled", expect=2).err
    )


def test_fields_of_evaluation_that_one_run_is_older_than_do_not_part_seeds(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / "a" / f"seed{seed}", seed, 100.0 + seed)
    path = tmp_path / "a" / "seed1" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"evaluate": {"probes": False}}))
    paths = [str(tmp_path / "a" / f"seed{seed}") for seed in (0, 1)]
    assert results.main([*paths, "--split", "test", "--group"]) == 0
    assert "100.5 ± 0.7" in capsys.readouterr().out
    other = tmp_path / "a" / "seed0" / "config.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"evaluate": {"probes": True}}))
    assert results.main([*paths, "--split", "test", "--group"]) == 2
    assert "evaluate.probes=False" in capsys.readouterr().err


def test_figures_of_a_report_can_be_columns(tmp_path, capsys):
    for seed, value in ((0, 40.0), (1, 42.0)):
        workdir = tmp_path / "a" / f"seed{seed}"
        write_run(workdir, seed, 100.0)
        (workdir / "report_test_full").mkdir()
        figures = {"t2i/mrr": {"value": value, "low": 1.0}, "rsum": {"value": 7.0}}
        content = json.dumps({"figures": figures})
        (workdir / "report_test_full" / "report.json").write_text(content)
    paths = [str(tmp_path / "a" / f"seed{seed}") for seed in (0, 1)]
    words = ["--split", "test", "--group", "--columns", "t2i/mrr,rsum"]
    assert results.main([*paths, *words]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[-6:] == ["41.0", "±", "1.4", "100.0", "±", "0.0"]
