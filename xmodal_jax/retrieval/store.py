"""The directory of an index: items are appended and removed, each time in one step.

    manifest.json       what belongs to the index, with a checksum of every file
    shards/0/           arrays of some items (.npy) and a line for each (items.jsonl)
    first_stage/1/      what turns embeddings into the codes of the first stage
    codes/1/0/          those codes, of the items of shard 0
    removed/2/          rows that were removed

No file is ever changed. The manifest is replaced when the files that it names are on the disk, so
that a writer that is killed leaves the index as it was, or as it was to become. What it does not
name any more is deleted by `compact`; who has opened it before goes on with it.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.retrieval import compaction, manifest
from xmodal_jax.retrieval.items import Item
from xmodal_jax.retrieval.shards import (
    ArrayFiles,
    Arrays,
    Pieces,
    Shard,
    allow_many_files,
    write_directory,
)
from xmodal_jax.retrieval.table import Table

_BUILDING = "building"
_OF_FILES = ("shards", "first_stage", "codes", "removed")
_Any = TypeVar("_Any")


def _taken(directory: Path) -> str:
    return f"{directory} holds an index already; add to it, or give another directory"


def _check_free(directory: Path) -> None:
    """UserError unless there is nothing in a directory, or no directory."""
    if (directory / manifest.NAME).exists():
        raise UserError(_taken(directory))
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty; give another directory")


class Store:
    """Items and arrays of an index; knows nothing of models.

    Attributes:
      directory: where it lies.
      about: what was said when it was created.
    """

    def __init__(self, directory: Path, content: dict[str, Any]) -> None:
        """Not called by users: `create` and `open` do so."""
        self.directory, self._content = directory, content
        self.about: Mapping[str, Any] = content["about"]
        self._opened: dict[str, tuple[Mapping[str, Any], ArrayFiles]] = {}

    @classmethod
    def create(cls, directory: Path, about: Mapping[str, Any]) -> "Store":
        """An empty one; UserError where there is one already."""
        manifest.make_directory(directory)
        content = {"about": dict(about), "next": 0, "shards": [], "removed": {}, "first_stage": {}}
        with manifest.only_writer(directory):
            if (directory / manifest.NAME).exists():
                raise UserError(_taken(directory))
            manifest.write(directory, content)
        return cls(directory, manifest.read(directory))

    @classmethod
    @contextlib.contextmanager
    def create_aside(cls, directory: Path, about: Mapping[str, Any]) -> Iterator["Store"]:
        """An empty one that takes its place when the block ends, whole; UserError where one is."""
        _check_free(directory)
        aside = directory.with_name(directory.name + ".partial")
        ours = any((aside / name).exists() for name in (_BUILDING, manifest.NAME))
        if aside.exists() and any(aside.iterdir()) and not ours:
            raise UserError(f"{aside} is not empty and no unfinished index; move it away")
        aside.mkdir(parents=True, exist_ok=True)
        with manifest.only_writer(aside, _BUILDING):
            # What a builder left that was killed.
            for path in aside.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != _BUILDING:
                    path.unlink()
            yield cls.create(aside, about)
            _check_free(directory)
            # The lock goes with it: without it another builder could take the place over before.
            aside.rename(directory)
            (directory / _BUILDING).unlink()
            manifest.sync(directory.parent)

    @classmethod
    def open(cls, directory: Path, *, verify: bool = False) -> "Store":
        """The one in a directory; with `verify` all files are read and their checksums compared.

        Raises:
          UserError: there is none, or a file is missing, of another size, or damaged.
        """
        store = cls(directory, manifest.read(directory))
        store._steadily(lambda: store._check_files(verify))
        return store

    def _check_files(self, contents: bool) -> None:
        for part in self._parts():
            manifest.check_files(self.directory, part["files"], contents=contents)

    def _steadily(self, work: Callable[[], _Any]) -> _Any:
        """What `work` returns; again where the files were replaced meanwhile."""
        while True:
            content = self._content
            try:
                return work()
            except UserError:
                self._refresh()
                if self._content == content:
                    raise

    def _refresh(self) -> None:
        content = manifest.read(self.directory)
        if content["about"] != self.about:
            raise UserError(f"{self.directory} was replaced by another index; open that one")
        self._content = content

    def _parts(self) -> Iterator[Mapping[str, Any]]:
        """Everything in the manifest that has files."""
        content = self._content
        yield from content["shards"]
        for part in (content["removed"], content["first_stage"]):
            if part:
                yield part
        yield from content["first_stage"].get("codes", ())

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(compaction.entry_bytes(part) for part in self._parts())

    @property
    def first_stage(self) -> Mapping[str, Any]:
        """What was said of it when it was put there; empty where there is none."""
        return self._content["first_stage"].get("about", {})

    def table(self) -> Table:
        """All rows, as they are now; they stay so, whatever becomes of the index."""
        allow_many_files()
        return self._steadily(self._table)

    def _table(self) -> Table:
        opened: dict[str, tuple[Mapping[str, Any], ArrayFiles]] = {}

        def files(kind: Any, entry: Mapping[str, Any]) -> Any:
            # What is open already was not changed: it is the same file if it is named as then.
            known, found = self._opened.get(entry["path"], (None, None))
            opened[entry["path"]] = (
                entry,
                found if known == entry and found else kind(self.directory, entry),
            )
            return opened[entry["path"]][1]

        removed, stage = self._content["removed"], self._content["first_stage"]
        table = Table(
            [files(Shard, shard) for shard in self._content["shards"]],
            [files(ArrayFiles, codes) for codes in stage.get("codes", ())],
            files(ArrayFiles, removed)["rows"] if removed else np.zeros(0, np.int64),
            files(ArrayFiles, stage) if stage else None,
        )
        self._opened = opened
        return table

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps other writers out; what they wrote before is read first."""
        with manifest.only_writer(self.directory):
            self._refresh()
            yield

    # To be called while `writing`.

    def append(self, items: Sequence[Item], arrays: Arrays, codes: Arrays) -> None:
        """Adds items with their arrays [n, ...], and the first stage's codes if there is one."""
        content, number = dict(self._content), self._content["next"]
        shard = self._write(f"shards/{number}", arrays, items) | {"count": len(items)}
        content["shards"] = [*content["shards"], shard]
        if content["first_stage"]:
            stage = dict(content["first_stage"])
            written = self._write(f"{stage['codes_path']}/{number}", codes)
            content["first_stage"] = stage | {"codes": [*stage["codes"], written]}
        self._publish(content)

    def remove(self, ids: Iterable[str]) -> None:
        """Removes items; UserError if one of them is not there, and then none is removed."""
        table = self.table()
        table.live[[table.row(id) for id in ids]] = False
        path = f"removed/{self._content['next']}"
        rows = {"rows": np.flatnonzero(~table.live)}
        if len(rows["rows"]):
            self._publish(self._content | {"removed": self._write(path, rows)})

    def compact(self) -> int:
        """Merges shards, and deletes what was removed or replaced; returns how many bytes.

        Rows get other numbers and keep their order. What is read stays in memory block by block.

        Raises:
          UserError: there is no room for the merged shards, which are written first, or a file is
            damaged.
        """
        directory, content, before = self.directory, self._content, self._bytes_on_disk()
        shards, stage, number = content["shards"], content["first_stage"], content["next"]
        of_codes = stage.get("codes", ())
        if content["removed"]:  # it decides what is gone for good
            manifest.check_files(directory, content["removed"]["files"], contents=True)
        plan = compaction.plan(directory, shards, of_codes, self._kept_rows())
        compaction.check_sources(directory, [part for part in plan if not part.as_it_is])
        new: list[Any] = []
        codes: list[Any] = []
        for part in plan:
            if part.as_it_is:
                new, codes = new + part.shards, codes + part.codes
            elif part.count:
                name = f"{number}-{len(new)}"
                arrays, items = part.arrays(directory), part.items(directory)
                shard = self._write(f"shards/{name}", arrays, items)
                new.append(shard | {"count": part.count})
                if stage:
                    arrays = part.code_arrays(directory)
                    codes.append(self._write(f"{stage['codes_path']}/{name}", arrays))
        if new != shards:
            merged = {"shards": new, "removed": {}}
            if stage:
                merged["first_stage"] = stage | {"codes": codes}
            self._publish(content | merged)
        named = {Path(part["path"]) for part in self._parts()}
        compaction.delete_unnamed(directory, _OF_FILES, named)
        return before - self._bytes_on_disk()

    def _kept_rows(self) -> list[np.ndarray]:
        """Of each shard, counted from its first."""
        parts = list(self.shard_rows())
        live = np.ones(sum(map(len, parts)), bool)
        if self._content["removed"]:
            live[ArrayFiles(self.directory, self._content["removed"])["rows"]] = False
        return [np.flatnonzero(live[rows]) for rows in parts]

    def _bytes_on_disk(self) -> int:
        files = (file for name in _OF_FILES for file in (self.directory / name).rglob("*"))
        return sum(file.stat().st_size for file in files if file.is_file())

    def put_first_stage(
        self, about: Mapping[str, Any], arrays: Arrays, codes: Sequence[Arrays]
    ) -> None:
        """Replaces the first stage; codes: of each shard."""
        number = self._content["next"]
        stage = self._write(f"first_stage/{number}", arrays) | {"about": dict(about)}
        stage["codes_path"] = f"codes/{number}"
        stage["codes"] = [
            self._write(f"codes/{number}/{Path(shard['path']).name}", part)
            for shard, part in zip(self._content["shards"], codes, strict=True)
        ]
        self._publish(self._content | {"first_stage": stage})

    def describe_first_stage(self, about: Mapping[str, Any]) -> None:
        """Says something else of it."""
        stage = self._content["first_stage"] | {"about": dict(about)}
        self._publish(self._content | {"first_stage": stage})

    def shard_rows(self) -> Iterator[np.ndarray]:
        """The rows of each shard."""
        start = 0
        for shard in self._content["shards"]:
            yield np.arange(start, start + shard["count"])
            start += shard["count"]

    def _write(
        self, path: str, arrays: Mapping[str, np.ndarray | Pieces], items: Iterable[Item] = ()
    ) -> dict[str, Any]:
        full = self.directory / path
        write_directory(full, arrays, items)
        files = {f"{path}/{f.name}": manifest.file_entry(f) for f in sorted(full.iterdir())}
        return {"path": path, "files": files}

    def _publish(self, content: dict[str, Any]) -> None:
        # Each step has a number of its own: what an older one wrote is never written over.
        content = {k: v for k, v in content.items() if k != "format"}
        content["next"] = self._content["next"] + 1
        manifest.write(self.directory, content)
        self._content = manifest.read(self.directory)
