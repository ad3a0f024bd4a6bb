"""The shards of an index as one table of rows."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.retrieval.items import Item
from xmodal_jax.retrieval.shards import ArrayFiles, Arrays, Shard

VECTORS = ("tokens", "pooled")  # arrays of which all rows have vectors of one dimension


class Table:
    """Rows of all shards, numbered through; removed ones keep their numbers.

    Attributes:
      live: bool [N], False where an item was removed.
      first_stage: arrays of what made the codes, if there are any.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        codes: Sequence[ArrayFiles],
        removed: np.ndarray,
        first_stage: ArrayFiles | None,
    ) -> None:
        """codes: beside each shard, what the first stage keeps of it; removed: rows."""
        self._shards, self._codes, self.first_stage = shards, codes, first_stage
        self._starts = np.cumsum([0, *(shard.count for shard in shards)])
        self.live = np.ones(self._starts[-1], bool)
        self.live[removed] = False

    def __len__(self) -> int:
        return int(self._starts[-1])

    @functools.cached_property
    def items(self) -> list[Item]:
        """Of all rows."""
        return [item for shard in self._shards for item in shard.items]

    @functools.cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each id that was not removed."""
        return {item.id: row for row, item in enumerate(self.items) if self.live[row]}

    def row(self, id: str) -> int:
        """The row of an id; UserError where there is none."""
        if id not in self.row_of:
            raise UserError(f"the index has no item {id!r}")
        return self.row_of[id]

    def chosen(self, where: Mapping[str, str]) -> np.ndarray:
        """bool [N], the live rows whose fields have these values."""
        if not where:
            return self.live
        return self.live & np.array([item.matches(where) for item in self.items], bool)

    @functools.cached_property
    def width(self) -> int:
        """The most vectors, or boxes, that an item has."""
        # A model of kind vector keeps no mask, and an item may have no boxes.
        names = ("mask", "boxes")
        return max(
            (s[name].shape[1] for s in self._shards for name in names if name in s), default=0
        )

    @functools.cached_property
    def dimensions(self) -> dict[str, int]:
        """Of the vectors, by the names of their arrays; empty without a shard."""
        first = self._shards[:1]
        return {name: s[name].shape[-1] for s in first for name in VECTORS if name in s}

    def has(self, name: str, rows: np.ndarray) -> np.ndarray:
        """bool [n], whether these rows [n] were stored with this array."""
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        return np.array([name in shard for shard in self._shards], bool)[owner]

    def take(self, rows: np.ndarray, names: Sequence[str]) -> Arrays:
        """The named arrays of some rows [n], padded to `width` vectors an item.

        Names: tokens, tokens_scale, mask, pooled, pooled_scale, boxes; codes, codes_scale.
        """
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        out: Arrays = {}
        for name in names:
            files = self._codes if name.startswith("codes") else self._shards
            for number in np.unique(owner):
                here = owner == number
                source = files[number][name]
                if name not in out:
                    inner = source.shape[1:]
                    if name in ("tokens", "tokens_scale", "mask", "boxes"):
                        inner = (self.width, *source.shape[2:])
                    out[name] = np.zeros((len(rows), *inner), source.dtype)
                found = source[rows[here] - self._starts[number]]
                out[name][here, : found.shape[1]] = found
        return out
