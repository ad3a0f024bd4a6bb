"""Which targets are right for which queries: one, several, or a list that people verified."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from xmodal_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Judgements:
    """The positive targets of some queries, by their rows and columns in a score matrix.

    queries: [J] rows that are judged, ascending; the others do not count.
    targets: [N] columns, those of the first judged query first.
    starts: [J + 1] where the columns of each judged query begin.
    """

    queries: np.ndarray
    targets: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        for k, query in enumerate(self.queries):
            yield int(query), self.targets[self.starts[k] : self.starts[k + 1]]

    def counts(self) -> np.ndarray:
        """[J] positives of each judged query."""
        return np.diff(self.starts)


def of_lists(queries: Sequence[int], targets: Sequence[np.ndarray]) -> Judgements:
    """Judgements of the columns of each row; a row without any is not judged."""
    kept = [k for k in np.argsort(queries, kind="stable") if len(targets[k])]
    columns = [np.unique(targets[k]) for k in kept]
    sizes = [len(own) for own in columns]
    return Judgements(
        np.array([queries[k] for k in kept], np.int64),
        np.concatenate([*columns, np.zeros(0, np.int64)]).astype(np.int64),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )


def same_image(query_ids: np.ndarray, target_ids: np.ndarray) -> Judgements:
    """What belongs to the same image is right, and nothing else.

    Args:
      query_ids: [Q] image id of each query; target_ids: [T].

    Raises:
      UserError: a query has no positive target.
    """
    order = np.argsort(target_ids, kind="stable")
    ordered = target_ids[order]
    left = np.searchsorted(ordered, query_ids, side="left")
    right = np.searchsorted(ordered, query_ids, side="right")
    if len(missing := np.flatnonzero(left == right)):
        q = missing[0]
        raise UserError(
            f"query {q} (image {query_ids[q]}) has no positive target; leave it out, or check the "
            "ids of both sides"
        )
    starts = np.concatenate([[0], np.cumsum(right - left)])
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], right - left)
    return Judgements(
        np.arange(len(query_ids)), order[np.repeat(left, right - left) + within], starts
    )


def by_ids(
    positives: Mapping[int, Sequence[int]], query_ids: np.ndarray, target_ids: np.ndarray
) -> Judgements:
    """Judgements from lists of ids; queries that are not listed are not judged.

    Args:
      positives: the ids of the right targets by the id of a query.
      query_ids: [Q] id of each row; target_ids: [T] id of each column.

    Raises:
      UserError: a right target of a query is no column, so that the query cannot be judged.
    """
    column = {int(target): k for k, target in enumerate(target_ids)}
    rows, lists = [], []
    for row, query in enumerate(query_ids):
        if (own := positives.get(int(query))) is None:
            continue
        if missing := [target for target in own if int(target) not in column]:
            raise UserError(
                f"query {int(query)} is right with {int(missing[0])}, which is not among the "
                f"{len(target_ids)} targets; give the whole split"
            )
        rows.append(row)
        lists.append(np.array([column[int(target)] for target in own], np.int64))
    return of_lists(rows, lists)
