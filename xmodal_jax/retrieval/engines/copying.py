"""The items of an embedded index are copied to another engine."""

import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from xmodal_jax.retrieval.engines.qdrant import Qdrant
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Part

_PART = 1024  # items


def stored_parts(index: Index, size: int = _PART) -> Iterator[Part]:
    """All items of an index with their embeddings, as they are stored."""
    rows, items = np.flatnonzero(index.live), index.items()
    # A part has boxes for all of its items or for none.
    ends = np.flatnonzero(np.diff(index.have_boxes(rows))) + 1
    starts = np.union1d(np.arange(0, len(rows), size), ends)
    for start, end in itertools.pairwise([*starts, len(rows)]):
        own = rows[start:end]
        stored = jax.tree.map(np.asarray, index.stored(own))
        yield Part(items[start:end], stored, index.stored_boxes(own))


def copy(
    index: Index, engine: Qdrant, on_done: Callable[[int], object] = lambda count: None
) -> int:
    """Adds what is not there yet, so that a copy that was stopped goes on; returns how many.

    on_done is called with numbers of items that are there.
    """

    def missing() -> Iterator[Part]:
        for part in stored_parts(index):
            there = engine.present([item.id for item in part.items])
            rows = np.array([n for n, item in enumerate(part.items) if item.id not in there], int)
            on_done(len(there))
            if len(rows):
                yield _rows(part, rows)

    return engine.add(missing(), on_done)


def _rows(part: Part, rows: np.ndarray) -> Part:
    items = [part.items[row] for row in rows]
    boxes = None if part.boxes is None else part.boxes[rows]
    return Part(items, jax.tree.map(lambda x: x[rows], part.embeddings), boxes)
