"""What an evaluator found one by one, so that a report can say how sure a mean is."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Outcome:
    """N outcomes in percent, each 0 to 100, and the image id [N] that each belongs to."""

    image_ids: np.ndarray
    values: np.ndarray


def means(outcomes: Mapping[str, Outcome], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the mean of each that has outcomes."""
    for name, outcome in outcomes.items():
        if len(outcome.values):
            yield prefix + name, float(np.mean(outcome.values))
