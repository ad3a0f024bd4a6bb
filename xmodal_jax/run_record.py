"""`run.json` of a workdir: what the run is, and how long it has trained on what.

It is kept apart from `metrics.jsonl`, which holds nothing that depends on the clock.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal_jax.workdir import write_json

_NAME = "run.json"


class RunRecord:
    """Adds the seconds of this part of a run to those of the earlier ones, from its making on."""

    def __init__(self, workdir: Path, start_step: int, facts: Mapping[str, Any]) -> None:
        """start_step: the step the run continues from; facts: recorded as they are."""
        self._path, self._start_step, self._facts = workdir / _NAME, start_step, dict(facts)
        self._before = read(workdir)
        # Unknown, and so it stays, for a run whose earlier parts have recorded nothing.
        self._earlier = self._before.get("train_seconds") if start_step else 0.0
        self._began = time.perf_counter()

    def write(self, steps: int, **found: Any) -> None:
        """Records the run as it is after `steps` updates, and what was found in this part of it."""
        if steps == self._start_step == self._before.get("steps"):
            return  # nothing was trained in this part
        here = time.perf_counter() - self._began
        seconds = None if self._earlier is None else round(self._earlier + here, 3)
        content = {**self._facts, "steps": steps, "train_seconds": seconds, **found}
        write_json(self._path, content)


def read(workdir: Path) -> dict[str, Any]:
    """What was recorded of a run; empty if nothing was."""
    path = workdir / _NAME
    return json.loads(path.read_text()) if path.is_file() else {}
