"""The training loop: how often its step is compiled, and its share of time waiting for data."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from configs import demo
from data_pipeline import input_pipeline, region_captions
from data_pipeline.tokenizer import make_tokenizer
from xmodal_jax import train

ROOT = Path(__file__).parents[1]
STEPS, BATCH, WIDTHS, MAX_TOKENS = 12, 8, (18, 20, 22), 24
CONFIG = f"""
from configs import demo

def get_config():
    config = demo.get_config("mean_pooled")
    config.data.update(dir="DATA", token_widths={WIDTHS}, max_tokens={MAX_TOKENS})
    config.data.synthetic_sizes.update(train=64, dev=16, test=16)
    config.model.text.update(num_layers=1, width=16, num_heads=2, mlp_dim=16)
    config.model.update(region_layers=1, embed_dim=16, num_heads=2, mlp_dim=16)
    config.train.update(steps={STEPS}, batch_size={BATCH}, log_every=1, checkpoint_every=4)
    config.evaluate.update(batch_size=8, pointing=False)
    return config
"""


def run(directory, workdir):
    """Runs the program on one device; its output, and the compilations that JAX itself logs."""
    file = directory / "widths.py"
    file.write_text(CONFIG.replace("DATA", str(directory / "data")))
    done = subprocess.run(
        [sys.executable, "-m", "xmodal_jax.main", f"--config={file}", f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "JAX_LOG_COMPILES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, re.findall(r"Compiling jit\(train_step\)", done.stderr)


def widths_met(directory):
    """The width of each batch, counted in the captions that TFDS itself reads."""
    dataset = region_captions.open_dataset(directory / "data", "scenes")
    captions = [
        len(re.findall(r"\w+", caption.decode()))
        for record in dataset.as_dataset(split="train").as_numpy_iterator()
        for caption in record["captions"]
    ]
    batches = input_pipeline.train_batches(
        dataset,
        tokenizer=make_tokenizer("words", dataset.info.metadata["word_counts"]),
        **{"split": "train", "batch_size": BATCH, "seed": 0, "start_step": 0},
        **{"max_tokens": MAX_TOKENS, "max_regions": 2},
    )
    longest = [max(captions[i] for i in b["caption_id"]) for b in itertools.islice(batches, STEPS)]
    return [min(w for w in (*WIDTHS, MAX_TOKENS) if w >= words + 2) for words in longest]


def test_the_step_is_compiled_once_for_each_width_met(tmp_path):
    said, compiled = run(tmp_path, tmp_path / "w")
    met = list(dict.fromkeys(widths_met(tmp_path)))
    # Fewer than there are steps: the others have found their program.
    assert 2 <= len(met) < STEPS and len(compiled) == len(met)
    assert re.findall(r"compiling the step for captions of (\d+)", said) == [str(w) for w in met]
    assert json.loads((tmp_path / "w" / "run.json").read_text())["compiled_steps"] == len(met)


class Clock:
    """time.perf_counter, of which only `pass_` makes seconds go by."""

    def __init__(self):
        self.now = 100.0

    def pass_(self, seconds):
        self.now += seconds


WAITS = (1, 2, 6, 1, 3, 4)


@pytest.fixture
def loop(monkeypatch):
    """A loop over 6 steps of a made-up experiment: WAITS for the batches, 1 s for each step."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)

    def batches(experiment, start):
        for step, seconds in enumerate(WAITS):
            clock.pass_(seconds)
            width = 5 if step in (1, 4) else 8
            yield {"image_id": np.arange(2), "tokens": np.zeros((2, width), np.int32)}

    def step(state, batch):
        clock.pass_(1)
        return state, {"loss": 1.0, "grad_norm": 1.0}

    def evaluate(params):
        clock.pass_(50)
        return [("dev/rsum", 1.0)]

    monkeypatch.setattr(train, "_batches", batches)
    monkeypatch.setattr(train, "make_train_step", lambda *_, **__: step)
    monkeypatch.setattr(train, "frozen_mask", lambda *_: None)
    monkeypatch.setattr(train.partitioning, "put_batch", lambda batch, mesh, size: batch)
    config = demo.get_config()
    config.train.update(steps=6, batch_size=2, log_every=2, evaluate_every=3, checkpoint_every=3)
    experiment = mock.Mock(config=config, evaluators=lambda: [mock.Mock(run=evaluate)])
    experiment.schedule.return_value, experiment.mesh.shape = 0.1, {"data": 1}
    return train.Loop(experiment, mock.Mock(best=(None, 0.0)), mock.Mock(), mock.Mock(), 0)


def test_the_share_of_time_waiting_for_data_is_logged(loop):
    loop.run(mock.Mock(), mock.Mock(at=lambda step: False))
    timings = {c.args[0]: c.args[1]["data_wait"] for c in loop.writer.write_timing.call_args_list}
    # Metrics are read a step late: those of step 2 when 3 are done, those of 4 when 5 are. The
    # evaluation after step 3 takes 50 s and is no part of training.
    expected = {2: 9 / (9 + 3), 4: 4 / (4 + 2), 6: 4 / (4 + 1)}
    assert timings == pytest.approx(expected)


def test_every_new_shape_of_a_batch_is_told_and_counted(loop, capsys):
    loop.run(mock.Mock(), mock.Mock(at=lambda step: False))
    said = [line for line in capsys.readouterr().out.splitlines() if "compiling" in line]
    assert said == [f"compiling the step for captions of {width} tokens" for width in (8, 5)]
    assert [c.kwargs for c in loop.record.write.call_args_list] == [{"compiled_steps": 2}] * 3
