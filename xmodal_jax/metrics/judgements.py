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
    listed: [J] positives of each judged query; more than it has columns where some are not in the
      collection, so that they are never found.
    """

    queries: np.ndarray
    targets: np.ndarray
    starts: np.ndarray
    listed: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, int]]:
        """Each judged query with its columns and the number of its positives."""
        for k, query in enumerate(self.queries):
            columns = self.targets[self.starts[k] : self.starts[k + 1]]
            yield int(query), columns, int(self.listed[k])


def of_lists(
    queries: Sequence[int], targets: Sequence[np.ndarray], listed: Sequence[int] | None = None
) -> Judgements:
    """Judgements of the columns of each row; a row without any is not judged.

    listed: positives of each row, if some of them are no column.
    """
    columns = [np.unique(own) for own in targets]
    sizes = [len(own) for own in columns]
    listed = sizes if listed is None else listed
    kept = [k for k in np.argsort(queries, kind="stable") if sizes[k]]
    return Judgements(
        np.array([queries[k] for k in kept], np.int64),
        np.concatenate([*(columns[k] for k in kept), np.zeros(0, np.int64)]).astype(np.int64),
        np.concatenate([[0], np.cumsum([sizes[k] for k in kept])]).astype(np.int64),
        np.array([listed[k] for k in kept], np.int64),
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
    columns = order[np.repeat(left, right - left) + within]
    return Judgements(np.arange(len(query_ids)), columns, starts, right - left)


def by_ids(
    positives: Mapping[int, Sequence[int]], query_ids: np.ndarray, target_ids: np.ndarray
) -> Judgements:
    """Judgements from lists of ids; queries that are not listed are not judged.

    A right target that is no column is never found, but counts: ECCV Caption lists two of them.

    Args:
      positives: the ids of the right targets by the id of a query.
      query_ids: [Q] id of each row; target_ids: [T] id of each column.

    Raises:
      UserError: none of the right targets of a query is a column.
    """
    column = {int(target): k for k, target in enumerate(target_ids)}
    rows, lists, listed = [], [], []
    for row, query in enumerate(query_ids):
        if not (own := set(positives.get(int(query), ()))):
            continue
        found = [column[target] for target in own if target in column]
        if not found:
            raise UserError(
                f"none of the right targets of query {int(query)} is among the {len(target_ids)} "
                "targets; give the whole split"
            )
        rows.append(row)
        lists.append(np.array(found, np.int64))
        listed.append(len(own))
    return of_lists(rows, lists, listed)
