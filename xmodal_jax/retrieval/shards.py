"""Immutable files of some items of an index: arrays that are mapped, and a line for each item."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.retrieval import manifest
from xmodal_jax.retrieval.items import Item

_ITEMS = "items.jsonl"


def write_directory(path: Path, arrays: dict[str, np.ndarray], items: Sequence[Item]) -> None:
    """Writes files aside, and renames the directory when they are on the disk."""
    aside = path.with_name(path.name + ".tmp")
    # What lies there was left by a writer that was killed: no manifest names it.
    for old in (aside, path):
        shutil.rmtree(old, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(aside / f"{name}.npy", array, allow_pickle=False)
    if items:
        lines = (json.dumps(dataclasses.asdict(item)) + "\n" for item in items)
        (aside / _ITEMS).write_text("".join(lines), encoding="utf-8")
    for file in aside.iterdir():
        manifest.sync(file)
    manifest.sync(aside)
    aside.rename(path)
    manifest.sync(path.parent)


class ArrayFiles:
    """The arrays of a directory, mapped when they are first used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays: dict[str, np.ndarray] = {}

    def __contains__(self, name: str) -> bool:
        return (self._path / f"{name}.npy").exists()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            path = self._path / f"{name}.npy"
            try:
                self._arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                reason = str(error).split("\n")[0]
                raise UserError(f"{path} can't be read ({reason}); copy the index again") from None
        return self._arrays[name]


class Shard(ArrayFiles):
    """Items and their arrays."""

    def __init__(self, path: Path, count: int) -> None:
        super().__init__(path)
        self.count = count

    @functools.cached_property
    def items(self) -> list[Item]:
        """All items, in the order of the arrays' rows."""
        path = self._path / _ITEMS
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found = [Item(**row | {"size": tuple(row["size"])}) for row in rows]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}); copy the index again") from None
        if len(found) != self.count:
            raise UserError(f"{path} has {len(found)} items and not {self.count}; copy it again")
        return found
