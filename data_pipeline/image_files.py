"""A user's own images: which files they are, and reading them while a model is at work.

An image that cannot be used raises `BadImage` with the reason; nothing here waits for ever.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

# What cameras and the web use. Pillow reads more, and one of them (EPS) by running a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# Disk or network, too many open files.
_OF_MACHINE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
_ORIENTATION = 0x0112  # of EXIF
_LYING = (5, 6, 7, 8)  # orientations in which the stored width is the height

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class BadImage(Exception):
    """This image cannot be used; the message is a few words that say why."""


class ImageFile(NamedTuple):
    """Where an image lies, and its size, by which a replaced file is noticed."""

    path: Path
    num_bytes: int


@dataclasses.dataclass
class Search:
    """What became of a list of file names: files to read, and reasons why others are none."""

    files: dict[str, ImageFile] = dataclasses.field(default_factory=dict)
    bad: dict[str, str] = dataclasses.field(default_factory=dict)


def find_images(
    directory: Path, names: Iterable[str], folders: Mapping[str, str] | None = None
) -> Search:
    """Looks names up in a directory, each once; no name and no link leads out of it.

    Args:
      folders: name -> where below the directory to look as well, as Karpathy's JSON says it.
    """
    root, found = directory.resolve(), Search()
    for name in dict.fromkeys(names):
        try:
            found.files[name] = _find(root, name, (folders or {}).get(name, ""))
        except BadImage as error:
            found.bad[name] = str(error)
    return found


def _find(root: Path, name: str, folder: str) -> ImageFile:
    try:
        path = (root / name).resolve()
        if folder and not path.exists():
            path = (root / folder / name).resolve()
        if not path.is_relative_to(root):
            raise BadImage(f"leads out of {root}")
        status = path.stat()
    except FileNotFoundError:
        raise BadImage("missing") from None
    except (OSError, ValueError, RuntimeError) as error:  # Names that no file can have; loops.
        raise _as_bad(error) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("no file")  # Reading a pipe would wait for ever.
    return ImageFile(path, status.st_size)


class Upright(NamedTuple):
    """An upright RGB image. size: width and height before it was read at a smaller scale."""

    image: Image.Image
    size: tuple[int, int]


def open_image(path: Path, side: int = 0) -> Upright:
    """Reads a file as RGB, turned as its EXIF data says.

    Args:
      side: pixels that either side is needed to have; a JPEG may be decoded at a smaller scale as
        long as twice as many remain. 0: every pixel.

    Raises:
      BadImage: it is no image, ends early, or is so large that Pillow takes it for an attack.
      OSError: the disk or the network fails.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            size = image.size
            if side:
                image.draft(None, (2 * side, 2 * side))
            if image.getexif().get(_ORIENTATION) in _LYING:
                size = size[::-1]
            return Upright(ImageOps.exif_transpose(_to_rgb(image)), size)
    except Exception as error:  # Pillow's readers raise all kinds of them for damaged files.
        raise _as_bad(error) from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    # 16 bits a pixel, all of which above 255 Pillow would make white.
    brightness = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
    gray = Image.fromarray(brightness)
    gray.info = image.info
    return gray.convert("RGB")


def _as_bad(error: Exception) -> Exception:
    """A BadImage that says why; but not of what the machine fails at, which may be over soon."""
    if isinstance(error, BadImage) or (isinstance(error, OSError) and error.errno in _OF_MACHINE):
        return error
    text = " ".join(str(error).split())
    return BadImage(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def load_ahead(
    load: Callable[[_Key], _Value], keys: Iterable[_Key], threads: int, most: int
) -> contextlib.closing:
    """`load(key)` of each key in order, by threads; at most `most` results are waiting.

    Gives a context manager round the iterator, which yields the value, or the BadImage that was
    raised instead.
    """
    return contextlib.closing(_load_ahead(load, keys, threads, most))


def _load_ahead(
    load: Callable[[_Key], _Value], keys: Iterable[_Key], threads: int, most: int
) -> Iterator[_Value | BadImage]:
    def attempt(key: _Key) -> _Value | BadImage:
        try:
            return load(key)
        except BadImage as error:
            return error

    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for key in keys:
                waiting.append(pool.submit(attempt, key))
                if len(waiting) >= most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
