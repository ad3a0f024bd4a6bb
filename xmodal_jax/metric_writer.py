"""Metrics of a run: `metrics.jsonl`, one line a step that has any, and TensorBoard.

The JSONL file holds nothing that depends on the clock, and on resuming it is cut back to the
restored step: an interrupted run ends with the same file as an uninterrupted one.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path


class MetricWriter:
    """Appends metrics; made anew when a run resumes."""

    def __init__(self, workdir: Path, start_step: int = 0) -> None:
        """start_step: the step the run continues from; later lines are dropped."""
        from tensorboardX import SummaryWriter  # Late: it imports PyTorch where there is one.

        self._path = workdir / "metrics.jsonl"
        _cut_back(self._path, start_step)
        self._file = self._path.open("a")
        self._board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1, write_to_disk=True
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics of a step in both places."""
        values = {name: float(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self.write_timing(step, values)

    def write_timing(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records what depends on the clock: in TensorBoard only."""
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Puts the lines so far on disk; to be called before a checkpoint that follows them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes both."""
        self.sync()
        self._file.close()
        self._board.close()


def _cut_back(path: Path, step: int) -> None:
    """Drops lines after `step`, and a last line that was not written whole."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [s for s in lines if s.endswith("\n") and json.loads(s)["step"] <= step]
    aside = path.with_suffix(".tmp")
    aside.write_text("".join(kept))
    aside.replace(path)
