"""Which shards of an index can be merged, and what the merged ones hold; read block by block."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.retrieval.items import Item
from xmodal_jax.retrieval.shards import ArrayFiles, Pieces, read_array, read_items

Entry = Mapping[str, Any]  # what the manifest says of a shard, or of its codes

SHARD_BYTES = 2**32  # a merged shard is not larger, unless one of its parts was
_PIECE_BYTES = 2**24  # in memory at once


def entry_bytes(entry: Entry) -> int:
    """Of all files."""
    return sum(file["bytes"] for file in entry["files"].values())


def groups(directory: Path, shards: Sequence[Entry]) -> Iterator[list[int]]:
    """Numbers of neighbouring shards that can become one.

    Their arrays have the same names, shapes and types: no row is filled up, and the order of all
    rows stays, by which items of equal scores are ordered.
    """
    layouts = [_layout(directory, shard) for shard in shards]
    for _, alike in itertools.groupby(range(len(shards)), key=lambda number: layouts[number]):
        group: list[int] = []
        size = 0
        for number in alike:
            size += entry_bytes(shards[number])
            if group and size > SHARD_BYTES:
                yield group
                group, size = [], entry_bytes(shards[number])
            group.append(number)
        yield group


def _layout(directory: Path, shard: Entry) -> dict[str, Any]:
    files = [directory / file for file in shard["files"] if file.endswith(".npy")]
    arrays = {file.stem: read_array(file) for file in files}
    return {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}


def joined(
    directory: Path, entries: Sequence[Entry], rows: Sequence[np.ndarray]
) -> dict[str, Pieces]:
    """Some rows of each of these directories' arrays, one after another."""
    first = ArrayFiles(directory, entries[0])
    count = sum(map(len, rows))
    names = [Path(file).stem for file in entries[0]["files"] if file.endswith(".npy")]
    return {
        name: Pieces(
            (count, *first[name].shape[1:]),
            first[name].dtype,
            _pieces(name, directory, entries, rows),
        )
        for name in names
    }


def _pieces(
    name: str, directory: Path, entries: Sequence[Entry], rows: Sequence[np.ndarray]
) -> Iterator[np.ndarray]:
    for entry, own in zip(entries, rows, strict=True):
        # Open for as long as it is read: there may be more of them than files may be open.
        array = read_array(directory / entry["path"] / f"{name}.npy")
        step = max(1, _PIECE_BYTES * len(array) // max(array.nbytes, 1))
        for start in range(0, len(own), step):
            yield array[own[start : start + step]]


def joined_items(
    directory: Path, shards: Sequence[Entry], rows: Sequence[np.ndarray]
) -> Iterator[Item]:
    """Those of the same rows."""
    for shard, own in zip(shards, rows, strict=True):
        items = read_items(directory / shard["path"], shard["count"])
        yield from (items[row] for row in own)
