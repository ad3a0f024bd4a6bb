"""Evaluators: `run(params) -> Iterator[(name, value)]`; they read the parameters only."""

from collections.abc import Iterator
from typing import Any, Protocol


class Evaluator(Protocol):
    """What the training loop asks of an evaluator."""

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        """Yields named metrics of a model with these parameters."""
        ...
