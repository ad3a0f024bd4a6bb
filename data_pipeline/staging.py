"""Directories that are whole or absent, on a disk and in a bucket.

A dataset is written in a staging directory beside its place and moved there when all of it is
there. Paths are those of `tf.io.gfile`: local ones, or gs://... and the like.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow as tf

from data_pipeline.errors import DataError


def is_remote(path: str) -> bool:
    """Whether it is no path of this machine's disks."""
    return "://" in path


@contextlib.contextmanager
def staging(parent: str) -> Iterator[str]:
    """An empty directory in `parent` for one build, removed in the end if it is still there.

    On this machine one build at a time is let in, and what a killed one left is removed first. Its
    name is its own: workers of a killed build may outlive it for a while.

    Raises:
      DataError: another process is building there.
    """
    tf.io.gfile.makedirs(parent)
    directory = os.path.join(parent, f".staging-{uuid.uuid4().hex}")
    with contextlib.ExitStack() as stack:
        if not is_remote(parent):
            _lock(stack, parent)
        tf.io.gfile.makedirs(directory)
        try:
            yield directory
        finally:
            with contextlib.suppress(tf.errors.NotFoundError):
                tf.io.gfile.rmtree(directory)


def _lock(stack: contextlib.ExitStack, parent: str) -> None:
    lock = stack.enter_context(Path(parent, ".lock").open("w"))  # noqa: SIM115 - on the stack
    try:
        # The system lets go of it when the process ends, however it ends.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"another process is building in {parent}; wait for it") from None
    for left in Path(parent).glob(".staging*"):
        shutil.rmtree(left, ignore_errors=True)


def publish(directory: str, path: str, names: Sequence[str]) -> None:
    """Moves the named files of a staging directory to `path`, in place of what is there.

    On a local disk that is one rename. A bucket has none for directories: there the files are moved
    one by one, the last of `names` last, which has to be the one without which the others do not
    count; that of an older dataset goes first.
    """
    for name in set(tf.io.gfile.listdir(directory)) - set(names):
        tf.io.gfile.remove(os.path.join(directory, name))  # What a second try at a file left.
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        os.rename(directory, path)
        return
    if tf.io.gfile.exists(path):
        with contextlib.suppress(tf.errors.NotFoundError):
            tf.io.gfile.remove(os.path.join(path, names[-1]))
        tf.io.gfile.rmtree(path)
    tf.io.gfile.makedirs(path)
    for name in names:
        tf.io.gfile.rename(os.path.join(directory, name), os.path.join(path, name))
