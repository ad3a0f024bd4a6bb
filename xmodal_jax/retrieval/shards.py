"""Immutable files of some items of an index: arrays that are mapped, and a line for each item."""

import contextlib
import dataclasses
import errno
import json
import resource
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.retrieval import manifest
from xmodal_jax.retrieval.items import Item

ITEMS = "items.jsonl"

Arrays = dict[str, np.ndarray]


class Pieces(NamedTuple):
    """An array that is written piece by piece, as it may be larger than memory.

    Attributes:
      shape: of the whole.
      pieces: arrays that together are its rows.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[np.ndarray]


def write_directory(
    path: Path, arrays: Mapping[str, np.ndarray | Pieces], items: Iterable[Item] = ()
) -> None:
    """Writes files aside, and renames the directory when they are on the disk."""
    aside = path.with_name(path.name + ".tmp")
    # What lies there was left by a writer that was killed: no manifest names it.
    for old in (aside, path):
        shutil.rmtree(old, ignore_errors=True)
    manifest.make_directory(aside)
    for name, array in arrays.items():
        _write_array(aside / f"{name}.npy", array)
    lines = (json.dumps(dataclasses.asdict(item)) + "\n" for item in items)
    if first := next(lines, ""):
        with (aside / ITEMS).open("w", encoding="utf-8") as stream:
            stream.write(first)
            stream.writelines(lines)
    for file in aside.iterdir():
        manifest.sync(file)
    manifest.sync(aside)
    aside.rename(path)
    manifest.sync(path.parent)


def _write_array(path: Path, array: np.ndarray | Pieces) -> None:
    if isinstance(array, np.ndarray):
        np.save(path, array, allow_pickle=False)
        return
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for piece in array.pieces:
            stream.write(np.ascontiguousarray(piece, array.dtype).data)


def allow_many_files() -> None:
    """Lets this process open as many files as it may: each array of a shard is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems refuse "infinitely many"; then the limit is as it was.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def read_array(path: Path) -> np.ndarray:
    """An array, mapped: it stays readable when its file is deleted."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(path, error) from None


def read_items(path: Path, count: int) -> list[Item]:
    """The items of a shard's directory, in the order of the arrays' rows."""
    path = path / ITEMS
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = [Item(**row | {"size": tuple(row["size"])}) for row in rows]
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); copy the index again") from None
    if len(found) != count:
        raise UserError(f"{path} has {len(found)} items and not {count}; copy it again")
    return found


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return UserError(
            f"{path} can't be opened: {error.strerror}, one for each array of a shard; make them "
            "fewer with python -m xmodal_jax.retrieval compact, or raise the limit (ulimit -n)"
        )
    reason = str(error).split("\n")[0]
    return UserError(f"{path} can't be read ({reason}); copy the index again")


class ArrayFiles:
    """Arrays of a directory, mapped: they stay as they are when the files are deleted."""

    def __init__(self, directory: Path, entry: Mapping[str, Any]) -> None:
        """entry: what the manifest in the directory says of it."""
        files = [directory / file for file in entry["files"]]
        self._arrays = {file.stem: read_array(file) for file in files if file.suffix == ".npy"}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]


class Shard(ArrayFiles):
    """Items and their arrays."""

    def __init__(self, directory: Path, entry: Mapping[str, Any]) -> None:
        super().__init__(directory, entry)
        self.count: int = entry["count"]
        self.items = read_items(directory / entry["path"], self.count)
