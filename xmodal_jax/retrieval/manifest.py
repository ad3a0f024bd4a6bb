"""The list of what belongs to an index, with a checksum for every file; replaced in one step.

An index is what its `manifest.json` names. A file that it does not name, as a writer leaves that
was killed, is no part of it. Whoever has read a manifest can go on with its files: none of them
ever changes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xmodal_jax.errors import UserError

FORMAT = 2
NAME = "manifest.json"


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def sync(path: Path) -> None:
    """Returns when a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Makes a directory and those above it; their names are on the disk when it returns."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync(directory.parent)


def _render(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, indent=1, sort_keys=True)
    seal = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"sha256": "{seal}", "content":\n{text}\n}}\n'.encode()


def write(directory: Path, content: dict[str, Any]) -> None:
    """Replaces the manifest; after a crash it is the old or the new one."""
    aside = directory / (NAME + ".tmp")
    aside.write_bytes(_render({"format": FORMAT} | content))
    sync(aside)
    aside.replace(directory / NAME)
    sync(directory)


def read(directory: Path) -> dict[str, Any]:
    """The content of the manifest.

    Raises:
      UserError: there is none, it is damaged, or of another format.
    """
    path = directory / NAME
    if not path.is_file():
        raise UserError(
            f"{directory} is no index: it has no {NAME}; make one with "
            "python -m xmodal_jax.retrieval index"
        )
    raw = path.read_bytes()
    try:
        content = json.loads(raw)["content"]
        whole = _render(content) == raw
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: its checksum is wrong; copy the index again")
    if content["format"] != FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, this version reads {FORMAT}; index again"
        )
    return content


def check_files(directory: Path, files: dict[str, dict[str, Any]], *, contents: bool) -> None:
    """Raises a UserError unless all files are there, of their size, and with their contents."""
    for name, entry in files.items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing; copy the index again")
        if path.stat().st_size != entry["bytes"]:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes and not {entry['bytes']:,}; copy the "
                "index again"
            )
        if contents and checksum(path) != entry["sha256"]:
            raise UserError(f"{path} is damaged: its checksum is wrong; copy the index again")


@contextlib.contextmanager
def only_writer(directory: Path, name: str = "lock") -> Iterator[None]:
    """Holds a lock in a directory; the system frees it when the process ends, however it does.

    Raises:
      UserError: another process writes to the index.
    """
    descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing to {directory}; wait until it is done"
            ) from None
        yield
    finally:
        os.close(descriptor)
