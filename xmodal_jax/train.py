"""The training program: state, data, then the loop of step, log, evaluate, save.

An interrupted run continues bit by bit as if it had not been interrupted: the state comes from the
newest checkpoint, the data order from (seed, step), and the metric log is cut back to that step.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from data_pipeline import input_pipeline
from xmodal_jax import partitioning
from xmodal_jax.checkpoint import Checkpointer
from xmodal_jax.collapse import CollapseWatch, collapse_level
from xmodal_jax.distributed import StopSignal, is_main, wait_for_all
from xmodal_jax.errors import UserError
from xmodal_jax.experiment import Experiment
from xmodal_jax.metric_writer import MetricWriter
from xmodal_jax.optimizer import frozen_mask
from xmodal_jax.run_record import RunRecord
from xmodal_jax.train_state import TrainState
from xmodal_jax.train_step import Metrics, make_train_step
from xmodal_jax.workdir import claim_workdir


def train(config: Any, workdir: Path) -> None:
    """Trains to `config.train.steps`, continuing what the workdir has."""
    stop = StopSignal()
    if is_main():
        claim_workdir(workdir, config)
    wait_for_all("workdir")
    experiment = Experiment.create(config)
    checkpointer = Checkpointer(workdir, config.train.keep)
    state = _first_state(experiment, checkpointer)
    start = int(state.step)
    record = RunRecord(workdir, start, _facts(experiment)) if is_main() else None
    writer = MetricWriter(workdir, start) if is_main() else None
    loop = Loop(experiment, checkpointer, writer, record, start)
    try:
        loop.run(state, stop)
    finally:
        checkpointer.close()
        if writer:
            writer.close()
    if stop.received and is_main():
        print(
            f"stopped by {stop.received} at step {loop.step}; the same command continues from there"
        )


def _first_state(experiment: Experiment, checkpointer: Checkpointer) -> TrainState:
    """The newest checkpoint, or a new state."""
    if checkpointer.latest_step is None:
        if is_main():
            facts = _facts(experiment)
            print(f"{facts['parameters']:,} parameters on {facts['devices']} device(s)")
        return experiment.new_state()
    if is_main():
        print(f"continuing from step {checkpointer.latest_step}")
    return checkpointer.restore(experiment.abstract, experiment.shardings)


def _facts(experiment: Experiment) -> dict[str, Any]:
    """What is recorded of a run beside its steps and time."""
    return {
        "kind": experiment.model.kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(experiment.abstract.params)),
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
    }


def _batches(experiment: Experiment, start: int) -> Iterator[dict[str, np.ndarray]]:
    config = experiment.config
    return input_pipeline.train_batches(
        experiment.dataset,
        split=config.data.train_split,
        tokenizer=experiment.tokenizer,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start,
        max_regions=config.data.max_regions,
        max_tokens=config.data.max_tokens,
        token_widths=config.data.token_widths,
        max_relations=config.data.max_relations,
        rows=partitioning.local_rows(experiment.mesh, config.train.batch_size),
        streams=config.data.streams,
        shuffle_buffer=config.data.shuffle_buffer,
    )


class Loop:
    """Step, log, evaluate, save; the metrics of a step are read while the next one runs."""

    def __init__(
        self,
        experiment: Experiment,
        checkpointer: Checkpointer,
        writer: MetricWriter | None,
        record: RunRecord | None,
        start: int,
    ) -> None:
        """start: number of updates done so far; writer, record: of the process that has them."""
        self.experiment, self.config = experiment, experiment.config.train
        self.checkpointer, self.writer, self.record = checkpointer, writer, record
        self.step = start
        self.evaluators = experiment.evaluators()
        config = experiment.config
        self.train_step = make_train_step(
            experiment.model,
            experiment.tx,
            config,
            frozen=frozen_mask(experiment.abstract.params, tuple(config.optimizer.frozen)),
            mask_id=experiment.tokenizer.mask_id,
            mesh=experiment.mesh,
        )
        self._pending: tuple[int, np.ndarray, Metrics] | None = None
        self._collapse = CollapseWatch(collapse_level(config.loss, config.train.batch_size))
        self._best_rsum = checkpointer.best[1]
        self._start_clock(start)
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()  # of the batches so far

    def run(self, state: TrainState, stop: StopSignal) -> None:
        """Runs until the last step or a stop signal; the state is saved at its end."""
        batches = _batches(self.experiment, self.step)
        with tqdm(
            total=self.config.steps,
            initial=self.step,
            unit="step",
            desc="train",
            dynamic_ncols=True,
            disable=self.writer is None,
        ) as bar:
            while self.step < self.config.steps and not stop.at(self.step):
                batch = self._next(batches, bar)
                inputs = partitioning.put_batch(batch, self.experiment.mesh, self.config.batch_size)
                state, metrics = self.train_step(state, inputs)
                self._check_pending(bar)
                self.step += 1
                self._pending = (self.step, batch["image_id"], metrics)
                bar.update()
                if self._is_due(self.config.evaluate_every):
                    self._check_pending(bar)
                    self._evaluate(state, bar)
                if self._is_due(self.config.checkpoint_every):
                    self._check_pending(bar)
                    self._save(state)
            self._check_pending(bar)
        self._save(state)

    def _next(self, batches: Iterator[dict[str, np.ndarray]], bar: tqdm) -> dict[str, np.ndarray]:
        """The next batch; tells if the step is compiled for it, as it is for every new shape."""
        began = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - began
        shapes = tuple(batch[name].shape for name in sorted(batch))
        if shapes not in self._shapes:
            self._shapes.add(shapes)
            self._say(bar, f"compiling the step for captions of {batch['tokens'].shape[1]} tokens")
        return batch

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _check_pending(self, bar: tqdm) -> None:
        """Logs the metrics of the last step dispatched, or stops if they are not finite."""
        if self._pending is None:
            return
        step, image_ids, metrics = self._pending
        self._pending = None
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not np.isfinite(loss) or not np.isfinite(norm):
            shown = ", ".join(str(i) for i in image_ids)
            raise UserError(
                f"loss {loss}, gradient norm {norm} at step {step}: the update was not applied; "
                "start in a new --workdir with a lower optimizer.learning_rate, or look at the "
                f"batch's images: {shown}"
            )
        if warning := self._collapse.update(loss):
            self._say(bar, f"warning: {warning}")
        if step % self.config.log_every == 0 or step == self.config.steps:
            rate = float(self.experiment.schedule(step - 1))
            self._write(step, {"loss": loss, "grad_norm": norm, "learning_rate": rate})
            self._write_speed(step)
            bar.set_postfix(loss=f"{loss:.4g}")

    def _write_speed(self, step: int) -> None:
        before, then = self._clock
        seconds = max(time.perf_counter() - before, 1e-9)
        speed = {"steps_per_second": (step - then) / seconds, "data_wait": self._waited / seconds}
        if self.writer:
            self.writer.write_timing(step, speed)
        self._start_clock(step)

    def _start_clock(self, step: int) -> None:
        self._clock, self._waited = (time.perf_counter(), step), 0.0

    def _evaluate(self, state: TrainState, bar: tqdm) -> None:
        found = {k: v for e in self.evaluators for k, v in e.run(state.params)}
        self._write(self.step, found)
        split = self.experiment.config.evaluate.split
        text = "  ".join(f"{k.removeprefix(split + '/')} {v:.1f}" for k, v in found.items())
        self._say(bar, f"step {self.step}: {split} {text}")
        rsum = found[f"{split}/rsum"]
        if rsum > self._best_rsum:
            self._best_rsum = rsum
            self.checkpointer.save_best(self.step, state.params, rsum)
        self._start_clock(self.step)

    def _say(self, bar: tqdm, text: str) -> None:
        if self.writer:
            bar.write(text)

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        if self.writer:
            self.writer.write(step, metrics)

    def _save(self, state: TrainState) -> None:
        # The log comes first: a checkpoint never knows more steps than the log.
        if self.writer:
            self.writer.sync()
        self.checkpointer.save(self.step, state)
        if self.record:
            self.record.write(self.step, compiled_steps=len(self._shapes))
