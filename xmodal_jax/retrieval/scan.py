"""The best rows of a table by a score that is computed for every one of them, on the devices."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.retrieval.table import Table

# (rows' arrays [B, ...], query) -> scores [B]
RowScorer = Callable[[Any, Any], jax.Array]

_BLOCK_BYTES = 2**26  # of a block, as float32
_GROUP_BYTES = 2**22  # of the rows that a CPU decodes at once, as float32: they stay in its cache
# Of all blocks; a larger table is read from its files for every query. Accelerators may give more.
_RESIDENT_BYTES = 2**32
_RESIDENT_SHARE = (
    0.4  # of the memory of accelerators, for each of the two tables of a search, items and codes
)


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


class Blocks:
    """Some arrays of a table on the devices, block by block; all scans of them share the memory.

    Attributes:
      size: rows of a block, which are divided among the devices.
      group: rows of each device that are scored at once.
    """

    def __init__(self, table: Table, names: Sequence[str], mesh: jax.sharding.Mesh) -> None:
        """names: the arrays that are read."""
        self.table, self._names = table, names
        devices = mesh.shape["data"]
        self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        first = table.take(np.arange(min(1, len(table))), names)
        row_bytes = sum(array.nbytes for array in first.values())
        self._kept = len(table) * row_bytes <= _resident_bytes(mesh)
        numbers = max(1, sum(array.size for array in first.values()))
        fitting = max(1, _BLOCK_BYTES // (4 * numbers))
        largest = min(fitting, -(-len(table) // devices))
        # A power of two: a table that grows by a few rows needs no new program.
        own = min(_power_of_two(largest), _power_of_two(fitting + 1) // 2)
        self.size, self.group = devices * own, own
        if mesh.devices.flat[0].platform == "cpu":
            self.group = min(own, _power_of_two(max(1, _GROUP_BYTES // (4 * numbers)) + 1) // 2)
        self._resident: list[Any] | None = None

    def _read(self) -> Iterator[Any]:
        for start in range(0, len(self.table), self.size):
            # The last block is filled up with its last row, so that all have one shape.
            rows = np.minimum(np.arange(start, start + self.size), len(self.table) - 1)
            yield jax.device_put(self.table.take(rows, self._names), self._split)

    def __iter__(self) -> Iterator[Any]:
        if not self._kept:
            return self._read()
        if self._resident is None:
            self._resident = list(self._read())
        return iter(self._resident)


class Scan:
    """Scores all rows of a table, block by block, and keeps the best.

    Over a mesh, each device scores its part of a block and names its own best; the parts' best are
    merged on the host, so that devices send k numbers and not all. Programs are those of shapes: a
    table that grew, or lost rows, seldom needs new ones.
    """

    def __init__(self, score: RowScorer, mesh: jax.sharding.Mesh) -> None:
        """score: of rows' arrays, those of `Blocks`, with a query."""
        self._mesh = mesh
        self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        self._whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        devices = mesh.shape["data"]
        self.scores = jax.jit(score)  # of a few rows that were taken out

        @partial(jax.jit, static_argnames=("group", "k"))
        def best(
            block: Any, valid: jax.Array, query: Any, group: int, k: int
        ) -> tuple[jax.Array, jax.Array]:
            scores = _in_groups(score, devices, group)(block, query)
            scores = jnp.where(valid, scores, -jnp.inf).reshape(devices, -1)
            values, index = jax.lax.top_k(scores, k)
            return values, index + jnp.arange(devices)[:, None] * scores.shape[1]

        self._best = best

    def top(
        self, blocks: Blocks, query: Any, k: int, chosen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the chosen rows, best first; of equal ones the first come.

        Args:
          blocks: of a table's N rows.
          query: a tree of arrays that the score reads.
          k: how many; fewer come out where fewer are chosen.
          chosen: bool [N].

        Returns:
          int64 rows [k] and float32 scores [k].
        """
        if not len(blocks.table):
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        asked = min(_power_of_two(k), blocks.size // self._mesh.shape["data"])
        query = jax.device_put(query, self._whole)
        found = []
        for number, block in enumerate(blocks):
            start = number * blocks.size
            valid = np.zeros(blocks.size, bool)
            part = chosen[start : start + blocks.size]
            valid[: len(part)] = part
            valid = jax.device_put(valid, self._split)
            found.append((start, self._best(block, valid, query, group=blocks.group, k=asked)))
        scores = np.concatenate([np.asarray(values).ravel() for _, (values, _) in found])
        rows = np.concatenate([start + np.asarray(index).ravel() for start, (_, index) in found])
        rows = rows.astype(np.int64)
        order = np.lexsort((rows, -scores))[:k]
        order = order[np.isfinite(scores[order])]
        return rows[order], scores[order]


def _resident_bytes(mesh: jax.sharding.Mesh) -> int:
    """What may stay on the devices; a CPU does not say how much memory it has."""
    known = [device.memory_stats() or {} for device in mesh.devices.flat]
    memory = sum(stats.get("bytes_limit", 0) for stats in known)
    return max(_RESIDENT_BYTES, int(_RESIDENT_SHARE * memory))


def _in_groups(score: RowScorer, devices: int, group: int) -> RowScorer:
    """The same scores, of so many rows of each device at a time."""

    def grouped(block: Any, query: Any) -> jax.Array:
        count = len(next(iter(block.values())))
        if count == devices * group:
            return score(block, query)
        # Each device keeps the rows that it has: groups are cut out of its part.
        cut = lambda x: jnp.moveaxis(x.reshape(devices, -1, group, *x.shape[1:]), 1, 0)
        join = lambda x: x.reshape(devices * group, *x.shape[2:])
        one = lambda part: score(jax.tree.map(join, part), query).reshape(devices, group)
        return jnp.moveaxis(jax.lax.map(one, jax.tree.map(cut, block)), 0, 1).reshape(count)

    return grouped


def decoded(block: Any, name: str) -> jax.Array:
    """The vectors that `items.compress` stored, in float32; block: arrays by their names."""
    return jnp.asarray(block[name]).astype(jnp.float32) * block[name + "_scale"]
