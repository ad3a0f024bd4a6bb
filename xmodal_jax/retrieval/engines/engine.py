"""What every engine of a search can do; `Index` is one.

An engine is asked with the queries that an `Index` makes. What it answers has rows: numbers by
which it is asked again for boxes and similarities.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np

from xmodal_jax.retrieval.answers import Answer, Query
from xmodal_jax.retrieval.first_stage import CANDIDATES
from xmodal_jax.retrieval.items import Part


class Engine(Protocol):
    """Items that are added, removed and searched."""

    def add(
        self, parts: Iterable[Part], on_stored: Callable[[int], object] = lambda count: None
    ) -> int:
        """Adds items, and returns how many.

        Each part is stored, crash or not, before the next one is asked for; on_stored is called
        with its number of items when it is.

        Raises:
          UserError: an id is there already, or embeddings are not finite; the parts before stay.
        """

    def remove(self, ids: Iterable[str]) -> None:
        """Removes items; UserError if one of them is not there, and then none is removed."""

    def search(
        self,
        query: Query,
        k: int = 10,
        *,
        stage: str = "auto",
        candidates: int = CANDIDATES,
        where: Mapping[str, str] | None = None,
    ) -> Answer:
        """The k best items, best first; see `Index.search`."""

    def item_query(self, id: str) -> Query:
        """An item, as it is stored; UserError where there is none."""

    def boxes(self, row: int) -> np.ndarray | None:
        """float [R, 4] of an item's regions, x1, y1, x2, y2 in 0..1; None where there are none."""

    def similarities(self, query: Query, row: int) -> np.ndarray | None:
        """Cosines [R, W] of an item's vectors with the query's; None for a model without them."""

    def __len__(self) -> int:
        """How many items there are."""
        ...

    def close(self) -> None:
        """Gives back what it holds; it is not to be used after that."""
