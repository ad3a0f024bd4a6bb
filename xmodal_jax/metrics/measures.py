"""One pass over a score matrix: for every query, all that the figures of a report need.

The scores of each query are sorted once; ranks and precisions under several judgements, graded
relevances and the best targets all come from that.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xmodal_jax.metrics.graded import NDCG_AT, expected_dcg, ideal_dcg
from xmodal_jax.metrics.judgements import Judgements
from xmodal_jax.metrics.placement import Placement
from xmodal_jax.metrics.precision import Standing

TOP = 10
_BLOCK_SCORES = 2**22  # of a block of queries; a copy of it is sorted


@dataclasses.dataclass(frozen=True)
class Found:
    """What the judged queries found: [J] each, in the order of `queries`.

    first: where the first positives stand; average_precision: mAP@R; r_precision.
    """

    queries: np.ndarray
    first: Placement
    average_precision: np.ndarray
    r_precision: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of all Q queries of one direction.

    found: by the name of the judgements; ndcg: [Q] by the name of the relevances.
    top: [Q, k] the best targets, of equal ones the first come; top_scores: [Q, k] theirs.
    """

    found: dict[str, Found]
    ndcg: dict[str, np.ndarray]
    top: np.ndarray
    top_scores: np.ndarray


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, _BLOCK_SCORES // columns)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def measure(
    scores: np.ndarray,
    judgements: Mapping[str, Judgements],
    relevances: Mapping[str, np.ndarray] | None = None,
    *,
    top: int = TOP,
) -> Measured:
    """Measures the queries of a score matrix [Q, T], which may be a transposed view.

    Args:
      scores: finite; see `parts.check_finite`.
      judgements: by name.
      relevances: [Q, T] each, by name; may be transposed views.
      top: how many of the best targets of each query are kept.
    """
    relevances = relevances or {}
    count, columns = scores.shape
    top = min(top, columns)
    ndcg = {name: np.empty(count) for name in relevances}
    best = np.empty((count, top), np.int64)
    positives = {
        name: {query: (columns, listed) for query, columns, listed in judged}
        for name, judged in judgements.items()
    }
    standings: dict[str, list[Standing]] = {name: [] for name in judgements}
    for rows in _blocks(count, columns):
        block = np.ascontiguousarray(scores[rows])
        ordered = np.sort(block, axis=1)
        for k, (row, own) in enumerate(zip(block, ordered, strict=True), rows.start):
            best[k] = _best(row, own[-top], top)
            for name, right in positives.items():
                if k in right:
                    targets, listed = right[k]
                    standings[name].append(Standing.of(own, row[targets], listed))
        for name, relevance in relevances.items():
            part = np.ascontiguousarray(relevance[rows])
            lowest = ordered[:, -min(NDCG_AT, columns)]
            ndcg[name][rows] = _ndcg(block, part, lowest)
    found = {name: _found(judged, standings[name]) for name, judged in judgements.items()}
    return Measured(found, ndcg, best, np.take_along_axis(scores, best, axis=1))


def _best(row: np.ndarray, lowest: Any, top: int) -> np.ndarray:
    """[top] columns with the highest scores; lowest: the lowest of these."""
    among = np.flatnonzero(row >= lowest)
    return among[np.argsort(-row[among], kind="stable")[:top]]


def _ndcg(scores: np.ndarray, relevance: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """[Q] NDCG; 0 where nothing is relevant."""
    ideal = ideal_dcg(relevance)
    reached = [expected_dcg(*row) for row in zip(scores, relevance, lowest, strict=True)]
    return np.divide(reached, ideal, out=np.zeros(len(scores)), where=ideal > 0)


def _found(judgements: Judgements, standings: list[Standing]) -> Found:
    first = np.array([standing.first() for standing in standings], np.int64).reshape(-1, 3)
    return Found(
        judgements.queries,
        Placement(*first.T),
        np.array([standing.average_precision_at_r() for standing in standings]),
        np.array([standing.r_precision() for standing in standings]),
    )
