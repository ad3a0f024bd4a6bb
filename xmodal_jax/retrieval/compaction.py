"""Which shards of an index can be merged, and what the merged ones hold; read block by block."""

import dataclasses
import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.retrieval import manifest
from xmodal_jax.retrieval.items import Item
from xmodal_jax.retrieval.shards import ArrayFiles, Pieces, read_array, read_items

Entry = Mapping[str, Any]  # what the manifest says of a shard, or of its codes

SHARD_BYTES = 2**32  # a merged shard is not larger, unless one of its parts was
_PIECE_BYTES = 2**24  # in memory at once


def entry_bytes(entry: Entry) -> int:
    """Of all files."""
    return sum(file["bytes"] for file in entry["files"].values())


@dataclasses.dataclass(frozen=True)
class Merger:
    """Neighbouring shards that become one.

    Attributes:
      shards, codes: what the manifest says of them; no codes where there is no first stage.
      rows: those of each that stay, counted from its first.
    """

    shards: list[Entry]
    codes: list[Entry]
    rows: list[np.ndarray]

    @property
    def count(self) -> int:
        """Of the rows that stay."""
        return sum(map(len, self.rows))

    @property
    def as_it_is(self) -> bool:
        """Whether there is nothing to do."""
        return len(self.shards) == 1 and self.count == self.shards[0]["count"]

    def arrays(self, directory: Path) -> dict[str, Pieces]:
        """Of the merged shard."""
        return _joined(directory, self.shards, self.rows)

    def code_arrays(self, directory: Path) -> dict[str, Pieces]:
        """Of its codes."""
        return _joined(directory, self.codes, self.rows)

    def items(self, directory: Path) -> Iterator[Item]:
        """Of the merged shard."""
        for shard, own in zip(self.shards, self.rows, strict=True):
            items = read_items(directory / shard["path"], shard["count"])
            yield from (items[row] for row in own)


def plan(
    directory: Path, shards: Sequence[Entry], codes: Sequence[Entry], rows: Sequence[np.ndarray]
) -> list[Merger]:
    """All shards as mergers, in their order.

    Shards are merged whose arrays have the same names, shapes and types: no row is filled up, and
    the order of all rows stays, by which items of equal scores are ordered.

    Args:
      directory: of the index.
      shards: of the manifest.
      codes: beside each; none where there is no first stage.
      rows: of each shard, those that stay.
    """
    pick = lambda group: Merger(
        [shards[n] for n in group], [codes[n] for n in group if codes], [rows[n] for n in group]
    )
    return [pick(group) for group in _groups(directory, shards)]


def _groups(directory: Path, shards: Sequence[Entry]) -> Iterator[list[int]]:
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


def _joined(
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


def check_sources(directory: Path, mergers: Sequence[Merger]) -> None:
    """Raises a UserError if what is merged is damaged, or there is no room for what comes of it.

    Without the former, what is damaged would get a checksum that says it is whole.
    """
    needed = 0.0
    for merger in mergers:
        size = sum(map(entry_bytes, (*merger.shards, *merger.codes)))
        needed += size * merger.count / sum(shard["count"] for shard in merger.shards)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise UserError(
            f"the merged shards of {directory} take {needed / 2**20:,.0f} MiB and there are "
            f"{free / 2**20:,.0f}; make room, as the old ones are deleted after that"
        )
    for merger in mergers:
        for entry in (*merger.shards, *merger.codes):
            manifest.check_files(directory, entry["files"], contents=True)


def delete_unnamed(directory: Path, within: Iterable[str], named: set[Path]) -> None:
    """Deletes what is in these directories of an index and not among the named directories."""
    above = {parent for name in named for parent in name.parents}
    waiting = [Path(name) for name in within]
    while waiting:
        path = waiting.pop()
        if path in above:
            waiting += [path / child.name for child in (directory / path).iterdir()]
        elif path not in named:
            shutil.rmtree(directory / path, ignore_errors=True)
