"""Stores of region features that are looked up by the name of an image.

`BottomUpTsv` reads what the public bottom-up-attention code wrote, `FeatureFolders` the files an
image that TERAN, TERN and SGAE are trained from. Both read an image at a time.
"""

import base64
import binascii
import dataclasses
import functools
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.file_checks import (
    NPZ_ERRORS,
    check_file_name,
    check_is_file,
    read_npy_header,
)

# An image of 100 regions of 2048 floats is 1.1 MB of base64; nothing real comes near these.
_MOST_BYTES = 2**28
_LONGEST_NAME = 2**12  # bytes of a path, on Linux
_TSV_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


@dataclasses.dataclass(frozen=True)
class Regions:
    """The regions of one image.

    features: float [R, F].
    where: file and place of the features, for messages.
    boxes: float [R, 4] x1, y1, x2, y2, or None.
    boxes_where: file and place of the boxes, if it is another.
    size: width and height in pixels, or None where the store does not know.
    labels: int32 [R] numbers of the store's labels, -1 for none; or None.
    surely_pixels: whether boxes come from this program, and not from somebody's file.
    """

    features: np.ndarray
    where: str
    boxes: np.ndarray | None = None
    boxes_where: str = ""
    size: tuple[int, int] | None = None
    labels: np.ndarray | None = None
    surely_pixels: bool = False


class FeatureStore(Protocol):
    """Region features by name."""

    @property
    def labels(self) -> Sequence[str]:
        """Object classes that `Regions.labels` count; may be empty."""

    def names(self) -> Iterable[str]:
        """All that are there; cheap."""

    def read(self, name: str) -> Regions:
        """DataError where the file is damaged; the message names it and the place."""


class BottomUpTsv:
    """TSV files of bottom-up attention, an image a line.

    Columns: image_id, image_w, image_h, num_boxes, and in base64 float32 [n, 4] boxes in pixels and
    float32 [n, F] features. Lines are found by one pass at the start, which reads all bytes and
    keeps where each line begins.
    """

    labels: Sequence[str] = ()

    def __init__(self, paths: Sequence[Path]) -> None:
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path in paths:
            self._find_lines(path)
        if not self._places:
            raise DataError(f"{', '.join(map(str, paths))} has no lines; give the whole file")

    def _find_lines(self, path: Path) -> None:
        if not path.exists():
            raise DataError(f"{path} does not exist; give the TSV files with the features")
        check_is_file(path)
        with path.open("rb") as stream:
            number = 0
            while line := stream.readline(_MOST_BYTES):
                number, start = number + 1, stream.tell() - len(line)
                if len(line) == _MOST_BYTES:
                    raise DataError(f"{path} line {number} does not end; this is no features TSV")
                first_column = line[:_LONGEST_NAME].split(b"\t", 1)[0]
                name = first_column.decode("utf-8-sig", "replace").strip()
                whole = len(first_column) < _LONGEST_NAME and "\ufffd" not in name
                if not name.isprintable() or not name or not whole:
                    raise DataError(
                        f"{path} line {number} does not begin with an image id; remove the line, "
                        "or give a features TSV"
                    )
                if (first := self._places.get(name)) is not None:
                    raise DataError(
                        f"{path} line {number}: image {name} was at line {first[2]} of {first[0]} "
                        "already; remove one of the two"
                    )
                self._places[name] = path, start, number

    def names(self) -> Iterable[str]:
        return self._places.keys()

    def read(self, name: str) -> Regions:
        path, start, number = self._places[name]
        where = f"{path} line {number} (image {name})"
        with path.open("rb") as stream:
            stream.seek(start)
            fields = stream.readline(_MOST_BYTES).rstrip(b"\r\n").split(b"\t")
        if len(fields) != len(_TSV_COLUMNS):
            raise DataError(
                f"{where} has {len(fields)} columns, not {', '.join(_TSV_COLUMNS)}; "
                "extract the image again"
            )
        try:
            width, height, count = (int(field) for field in fields[1:4])
            boxes, features = (
                np.frombuffer(base64.b64decode(field, validate=True), "<f4") for field in fields[4:]
            )
        except (ValueError, binascii.Error) as error:
            raise DataError(f"{where} is damaged ({error}); extract the image again") from None
        if not (0 < width < 2**31 and 0 < height < 2**31):
            raise DataError(f"{where} is of an image of {width} x {height}; correct the line")
        if count < 1 or len(boxes) != 4 * count or len(features) == 0 or len(features) % count:
            raise DataError(
                f"{where} announces {count} boxes and has {len(boxes)} coordinates and "
                f"{len(features)} feature values; extract the image again"
            )
        return Regions(
            features.reshape(count, -1), where, boxes.reshape(count, 4), size=(width, height)
        )


class FeatureFolders:
    """A directory with `bu_att/NAME.npz` (array `feat` [R, F]) and `bu_box/NAME.npy` [R, 4] pixels.

    Any two directories that end in `_att` and `_box` will do; boxes may be missing.
    """

    labels: Sequence[str] = ()

    def __init__(self, directory: Path) -> None:
        self._features = self._one(directory, "att")
        self._boxes = self._one(directory, "box")
        if self._features is None:
            raise DataError(f"{directory} has no directory *_att (bu_att); give the one above it")

    def _one(self, directory: Path, ending: str) -> Path | None:
        found = sorted(path for path in directory.glob(f"*_{ending}") if path.is_dir())
        if len(found) > 1:
            raise DataError(
                f"{directory} has {' and '.join(path.name for path in found)}; leave one of them"
            )
        return found[0] if found else None

    @functools.cached_property
    def _endings(self) -> dict[str, str]:
        assert self._features is not None
        endings: dict[str, str] = {}
        for path in self._features.iterdir():
            if path.suffix not in (".npz", ".npy"):
                continue
            if path.stem in endings:
                raise DataError(
                    f"{self._features} has {path.stem}.npz and {path.stem}.npy; remove one of them"
                )
            endings[path.stem] = path.suffix
        return endings

    def names(self) -> Iterable[str]:
        return self._endings.keys()

    def read(self, name: str) -> Regions:
        check_file_name(name, str(self._features))
        assert self._features is not None
        path = self._features / f"{name}{self._endings[name]}"
        features = read_small_array(path, key="feat")
        if features.ndim != 2 or 0 in features.shape:
            raise DataError(
                f"{path} has shape {list(features.shape)}; it must be [regions, feature width]"
            )
        if self._boxes is None:
            return Regions(features, str(path))
        boxes = self._boxes / f"{name}.npy"
        return Regions(features, str(path), read_small_array(boxes), str(boxes))


def read_small_array(path: Path, key: str = "") -> np.ndarray:
    """A float array of a .npy file, or the one called key of a .npz file.

    Headers are believed only as far as the file goes: neither a huge shape nor a small archive of
    endless zeros takes memory.

    Raises:
      DataError: it is no such file, or an array of objects, which only a pickle could read.
    """
    try:
        check_is_file(path)
        if path.suffix != ".npz":
            with path.open("rb") as stream:
                return _read_array(stream, path.stat().st_size, path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if f"{key}.npy" not in names:
                raise DataError(f"{path} has {names}, and no array {key!r}; write the file again")
            member = archive.getinfo(f"{key}.npy")
            if member.file_size > _MOST_BYTES:
                raise DataError(
                    f"{path} unpacks to {member.file_size} bytes; it is no feature file"
                )
            with archive.open(member) as stream:
                return _read_array(stream, member.file_size, path)  # type: ignore[arg-type]
    except FileNotFoundError:
        raise DataError(f"{path} is missing; extract the image again") from None
    except DataError:
        raise
    except NPZ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is damaged ({reason}); extract the image again") from None


def _read_array(stream: BinaryIO, size: int, path: Path) -> np.ndarray:
    shape, fortran_order, dtype = read_npy_header(stream)
    if dtype.kind not in "fiu":
        raise DataError(f"{path} is an array of {dtype}; it must be one of numbers")
    count = 1
    for length in shape:
        count *= length  # Of Python's integers, which do not overflow.
    if not 0 <= count * dtype.itemsize <= size:
        raise ValueError(f"shape {shape} does not fit into {size} bytes")
    data = stream.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise EOFError("it ends early")
    flat = np.frombuffer(data, dtype)
    return flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)
