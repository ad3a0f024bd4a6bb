"""Orbax checkpoints of a workdir: the last few states, and the best parameters.

`checkpoints/STEP` hold the whole state; `best/STEP` the parameters with the highest validation
rsum, and that figure. Orbax writes aside and renames: a killed run leaves whole checkpoints only.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from xmodal_jax.train_state import TrainState

Params = Any


class Checkpointer:
    """Saves in the background; `close` waits for what is under way."""

    def __init__(self, workdir: Path, keep: int = 2) -> None:
        """workdir: of one run; keep: how many states are kept."""
        options = ocp.CheckpointManagerOptions
        self._states = ocp.CheckpointManager(
            workdir.absolute() / "checkpoints", options=options(max_to_keep=keep)
        )
        self._best = ocp.CheckpointManager(
            workdir.absolute() / "best", options=options(max_to_keep=1)
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest state, None without any."""
        return self._states.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Saves the state as that of `step`, unless it is there."""
        if step not in self._states.all_steps():
            # A state must never be on disk before the best parameters of its step are.
            self._best.wait_until_finished()
            self._states.save(step, args=ocp.args.StandardSave(state))

    def restore(self, abstract: TrainState, shardings: TrainState) -> TrainState:
        """The newest state, each array where its sharding puts it."""
        target = _with_shardings(abstract, shardings)
        return self._states.restore(self.latest_step, args=ocp.args.StandardRestore(target))

    @property
    def best(self) -> tuple[int | None, float]:
        """Step and rsum of the best parameters; (None, -inf) before the first evaluation."""
        step = self._best.latest_step()
        if step is None:
            return None, float("-inf")
        self._best.wait_until_finished()
        args = ocp.args.Composite(metrics=ocp.args.JsonRestore())
        return step, self._best.restore(step, args=args).metrics["rsum"]

    def save_best(self, step: int, params: Params, rsum: float) -> None:
        """Replaces the best parameters."""
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(params), metrics=ocp.args.JsonSave({"rsum": rsum})
        )
        self._best.save(step, args=args)

    def restore_params(self, abstract: TrainState, shardings: TrainState) -> tuple[int, Params]:
        """Step and parameters: the best ones, or the newest where nothing was evaluated."""
        step, _ = self.best
        if step is None:
            assert self.latest_step is not None, "the caller looked for a checkpoint"
            return self.latest_step, self.restore(abstract, shardings).params
        target = _with_shardings(abstract.params, shardings.params)
        args = ocp.args.Composite(params=ocp.args.StandardRestore(target))
        return step, self._best.restore(step, args=args).params

    def close(self) -> None:
        """Waits until everything is on disk."""
        for manager in (self._states, self._best):
            manager.wait_until_finished()
            manager.close()


def _with_shardings(abstract: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )
