"""Several real processes on this machine, started as users start them, against a single one."""

import json
import signal
import socket
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import programs
from tests.tiny_models import abstract_state, one_device_mesh, run_steps, tiny_config
from tests.waiting import lines_in, wait_for_lines
from xmodal_jax import distributed, partition_presets, partitioning

ROOT = Path(__file__).parents[1]
STEPS = 14
CONFIG = f"""
from configs import demo

def get_config(variant="teran"):
    config = demo.get_config(variant)
    # Packed scores differ in their last bits from mesh to mesh, which swaps near-tied ranks.
    config.scorer = "pairs"
    config.data.update(dir="DATA", streams=4)
    config.data.synthetic_sizes.update(train=72, dev=24, test=24)
    config.model.embed_dim = 16
    config.model.text.update(num_layers=1, width=16, num_heads=2, mlp_dim=16, dropout=0.1)
    if variant == "teran":
        config.model.update(region_layers=1, num_heads=2, mlp_dim=16, dropout=0.1)
    else:
        config.evaluate.rerank_top_k = 5
    config.augment.update(region_dropout=0.1, token_masking=0.1)
    config.train.update(steps={STEPS}, batch_size=16, log_every=1)
    config.train.update(evaluate_every=7, checkpoint_every=100)
    config.evaluate.batch_size = 8
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("distributed")
    path = directory / "tiny.py"
    path.write_text(CONFIG.replace("DATA", str(directory / "data")))
    return path


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def xla_flags(devices):
    return f"--xla_backend_optimization_level=1 --xla_force_host_platform_device_count={devices}"


def start(config, workdir, processes=1, devices=1, *arguments):
    """Starts the program in so many processes, each with so many devices."""
    address = free_address()
    words = [f"--config={config}", f"--workdir={workdir}", *arguments]
    joined = lambda number: [
        *("--distributed", f"--coordinator={address}"),
        *(f"--num_processes={processes}", f"--process_id={number}"),
    ]
    return [
        programs.start(
            *words, *(joined(number) if processes > 1 else []), XLA_FLAGS=xla_flags(devices)
        )
        for number in range(processes)
    ]


def finish(started, codes=0):
    """What all processes wrote, once they have ended as they should."""
    outputs = ["".join(process.communicate()) for process in started]
    assert [process.returncode for process in started] == [codes] * len(started), outputs
    return outputs


def assert_same_metrics(workdir, expected):
    """Every line of the logs, with the differences that another order of sums makes.

    Loss and norm of the gradients are among them.
    """
    read = lambda path: list(map(json.loads, (path / "metrics.jsonl").read_text().splitlines()))
    ours, theirs = read(workdir), read(expected)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert all({"loss", "grad_norm"} <= line.keys() for line in ours if "dev/rsum" not in line)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        np.testing.assert_allclose(list(mine.values()), list(other.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def single(config, tmp_path_factory):
    """Workdir of a run in one process on one device, never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "single"
    finish(start(config, workdir))
    return workdir


def test_processes_come_and_go_and_the_run_stays_the_same(config, single, tmp_path):
    workdir = tmp_path / "elastic"
    # Four processes, of which one is told to stop; then two with two devices each; then one of 8.
    for processes, devices, partition in ((4, 1, "replicated"), (2, 2, "fsdp")):
        before = lines_in(workdir / "metrics.jsonl")
        started = start(config, workdir, processes, devices, f"--config.partition={partition}")
        wait_for_lines(started, workdir / "metrics.jsonl", before + 2, seconds=300)
        started[-1].send_signal(signal.SIGTERM)
        outputs = finish(started)
        assert "stopped by SIGTERM at step" in outputs[0]
        assert "continuing from step" in outputs[0] or not before
        for said in ("stopped by", "continuing from", "compiling", "parameters on"):
            assert not any(said in output for output in outputs[1:])
        assert 0 < lines_in(workdir / "metrics.jsonl") < STEPS
    finish(start(config, workdir, 1, 8, "--config.mesh.model=2", "--config.partition=fsdp+tensor"))
    assert_same_metrics(workdir, single)


def three_steps_of_cmsei(mesh, partition):
    """Loss and norm of the gradients of three steps, and the moments after them."""
    # Every pair of the batch is scored, in one part.
    config = tiny_config("cmsei", **{"loss.candidates": 0, "train.encode_parts": 1})
    _, _, abstract = abstract_state(config)
    rules = partition_presets.preset_rules(partition, abstract.params, mesh)
    metrics, state = run_steps(config, mesh, rules)
    moments = jax.tree.leaves(partitioning.fetch(state.opt_state))
    figures = [[float(step[name]) for name in ("loss", "grad_norm")] for step in metrics]
    gradients = metrics[0]["gradients"]
    return {"figures": np.array(figures), "gradients": gradients} | {
        str(n): x for n, x in enumerate(moments)
    }


def join_and_step(address, processes, number, directory):
    distributed.join(address, processes, number)
    assert jax.device_count() == 4
    partition_presets._SMALL = 16
    found = three_steps_of_cmsei(partitioning.make_mesh(), "fsdp")
    if distributed.is_main():
        np.savez(directory / "found", **found)
    distributed.wait_for_all("end")


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_cmsei_on_several_processes_takes_the_steps_of_one_device(tmp_path, processes):
    address = free_address()
    finish(
        [
            programs.Fork(
                *(join_and_step, address, processes, number, tmp_path),
                XLA_FLAGS=xla_flags(4 // processes),
            )
            for number in range(processes)
        ]
    )
    expected = three_steps_of_cmsei(one_device_mesh(), "replicated")
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["figures"], expected["figures"], rtol=1e-5)
        gradients = expected["gradients"]
        difference = np.linalg.norm(found["gradients"] - gradients)
        assert difference < 1e-5 * np.linalg.norm(gradients) > 0
        # As on meshes of one process, in test_partitioning.py.
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5)


def test_two_processes_evaluate_cmsei_as_the_one_that_trained_it(config, tmp_path):
    workdir = tmp_path / "run"
    finish(start(f"{config}:cmsei", workdir, 1, 1, "--config.train.steps=7"))
    words = "--config.train.steps=7", "--mode=evaluate"
    outputs = finish(start(f"{config}:cmsei", workdir, 2, 1, *words))
    assert "rsum" in outputs[0] and "rsum" not in outputs[1]
    (path,) = workdir.glob("evaluation_dev_*.json")
    report = json.loads(path.read_text())
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    trained = next(x for x in lines if x["step"] == report["step"] and "dev/rsum" in x)
    for name, value in report["metrics"].items():
        np.testing.assert_allclose(value, trained[f"dev/{name}"], rtol=1e-5)


def test_ctrl_c_at_one_process_saves_on_all(config, tmp_path):
    workdir = tmp_path / "interrupted"
    started = start(config, workdir, 2, 1, "--config.train.steps=100000")
    wait_for_lines(started, workdir / "metrics.jsonl", 2, seconds=300)
    started[0].send_signal(signal.SIGINT)
    assert "stopped by SIGTERM at step" in finish(started)[0]
    assert any(path.name.isdigit() for path in (workdir / "checkpoints").iterdir())


def test_processes_with_different_flags_do_not_train_together(config, tmp_path):
    address = free_address()
    started = [
        programs.start(
            *(f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.seed={number}"),
            *("--distributed", f"--coordinator={address}", "--num_processes=2"),
            f"--process_id={number}",
            XLA_FLAGS=xla_flags(1),
        )
        for number in range(2)
    ]
    for output in finish(started, codes=2):
        assert "error: process 1 was started with other flags than process 0" in output
    assert not (tmp_path / "run").exists()


def test_when_a_process_dies_the_others_stop(config, tmp_path):
    workdir = tmp_path / "dies"
    started = start(config, workdir, 2, 1, "--config.train.steps=100000")
    wait_for_lines(started, workdir / "metrics.jsonl", 3, seconds=300)
    started[1].kill()
    _, error = started[0].communicate(timeout=150)
    assert started[0].returncode not in (0, None)
    assert "start all processes again with the same command" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num_processes=2",), "--coordinator, --num_processes and --process_id need"),
        (("--distributed", "--num_processes=2"), "--process_id go together; give all"),
        (
            ("--distributed", "--coordinator=a:1", "--num_processes=2", "--process_id=2"),
            "--process_id=2 is not in 0..1",
        ),
        (
            ("--distributed", "--coordinator=a", "--num_processes=2", "--process_id=1"),
            "--coordinator=a has no port; give HOST:PORT",
        ),
        (("--config.mesh.model=3",), "set mesh.data=-1 and mesh.model to one of 1"),
        (("--config.partition=zero",), "partition='zero' is not known; use replicated, fsdp"),
        (("--config.data.streams=3",), "streams=3 do not divide batch_size=16"),
    ],
)
def test_mistakes_are_one_line(config, tmp_path, arguments, message):
    (output,) = finish(start(config, tmp_path / "run", 1, 1, *arguments), codes=2)
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
