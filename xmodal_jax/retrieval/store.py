"""The directory of an index: items are appended and removed, each time in one step.

    manifest.json       what belongs to the index, with a checksum of every file
    shards/0/           arrays of some items (.npy) and a line for each (items.jsonl)
    first_stage/1/      what turns embeddings into the codes of the first stage
    codes/1/0/          those codes, of the items of shard 0
    removed/2/          rows that were removed

No file is ever changed. The manifest is replaced when the files that it names are on the disk, so
that a writer that is killed leaves the index as it was, or as it was to become.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.retrieval import manifest
from xmodal_jax.retrieval.items import Item
from xmodal_jax.retrieval.shards import ArrayFiles, Shard, write_directory
from xmodal_jax.retrieval.table import Arrays, Table

_BUILDING = "building"


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

    @classmethod
    def create(cls, directory: Path, about: Mapping[str, Any]) -> "Store":
        """An empty one; UserError where there is one already."""
        directory.mkdir(parents=True, exist_ok=True)
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
        content = manifest.read(directory)
        store = cls(directory, content)
        for part in store._parts():
            manifest.check_files(directory, part["files"], contents=verify)
        return store

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
        return sum(file["bytes"] for part in self._parts() for file in part["files"].values())

    @property
    def first_stage(self) -> Mapping[str, Any]:
        """What was said of it when it was put there; empty where there is none."""
        return self._content["first_stage"].get("about", {})

    def first_stage_files(self) -> ArrayFiles:
        """Its arrays."""
        return ArrayFiles(self.directory / self._content["first_stage"]["path"])

    def table(self) -> Table:
        """All rows, as they are now."""
        path, content = self.directory, self._content
        shards = [Shard(path / shard["path"], shard["count"]) for shard in content["shards"]]
        codes = [ArrayFiles(path / c["path"]) for c in content["first_stage"].get("codes", ())]
        removed = np.zeros(0, np.int64)
        if content["removed"]:
            removed = ArrayFiles(path / content["removed"]["path"])["rows"]
        return Table(shards, codes, removed)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps other writers out; what they wrote before is read first."""
        with manifest.only_writer(self.directory):
            self._content = manifest.read(self.directory)
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

    def remove(self, rows: np.ndarray) -> None:
        """Removes rows for good; their numbers are not used again."""
        path = f"removed/{self._content['next']}"
        self._publish(self._content | {"removed": self._write(path, {"rows": rows})})

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

    def _write(self, path: str, arrays: Arrays, items: Sequence[Item] = ()) -> dict[str, Any]:
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
