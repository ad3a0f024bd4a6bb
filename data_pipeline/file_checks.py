"""Reading and checking the values of feature files: every mistake in them becomes one line.

`where` is the place that a message names, such as `precomp, split train, row 12`.
"""

import codecs
import json
import lzma
import re
import reprlib
import stat
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data_pipeline.errors import DataError

# What numpy raises for a .npy file that is cut, altered or something else, and zipfile for a .npz.
NPY_ERRORS = (
    *(ValueError, TypeError, EOFError, SyntaxError, OverflowError, MemoryError),
    tokenize.TokenError,
)
NPZ_ERRORS = (
    *(*NPY_ERRORS, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(KeyError, OSError, RuntimeError),
)

ROUNDED = 0.001  # What a box in 0..1 may leave it by, as some were rounded.
_LARGEST = float(np.finfo(np.float32).max)

Relation = tuple[int, str, int, float]  # Subject region, predicate, object region, confidence.


class NpyHeader(NamedTuple):
    """What the header of a .npy file announces."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


def read_npy_header(stream: BinaryIO) -> NpyHeader:
    """Reads a stream up to where the data begin; raises one of NPY_ERRORS."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format")
    return NpyHeader(*readers[version](stream))


def check_is_file(path: Path) -> None:
    """DataError for a pipe or a directory: reading a pipe may wait for ever, and works once."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path} is no regular file; write what it holds to one")


def open_array(path: Path) -> np.ndarray:
    """A .npy file, mapped and not read; no pickle is ever loaded."""
    try:
        check_is_file(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; add it or choose other --splits") from None
    except DataError:
        raise
    except NPY_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} is not a whole .npy file of numbers ({reason}); copy it again"
        ) from None


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, stripped; the last one need not end, the first may have a BOM."""
    try:
        check_is_file(path)
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; add it or choose other --splits") from None
    if lines[-1] == b"":
        lines.pop()  # What follows the last line's end is not a line.
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.decode("utf-8").strip())
        except UnicodeDecodeError:
            raise DataError(
                f"{path} line {number} is not UTF-8; convert the file, e.g. with iconv"
            ) from None
    return texts


def parse_integer(text: str, path: Path, number: int) -> int:
    """The image id on a line."""
    remedy = "remove the file to number the images by row"
    try:
        value = int(text)
    except ValueError:
        raise DataError(
            f"{path} line {number}: id {reprlib.repr(text)} is not an integer; write integers, or "
            f"{remedy}"
        ) from None
    if not 0 <= value < 2**31:
        raise DataError(
            f"{path} line {number}: id {reprlib.repr(text)} is not in 0 .. 2^31 - 1; renumber the "
            f"images, or {remedy}"
        )
    return value


def half_precision(row: np.ndarray, where: str) -> np.ndarray:
    """[R, F] floats as float16; DataError for what is not finite there."""
    with np.errstate(over="ignore"):
        half = row.astype(np.float16)
    if not np.isfinite(half).all():
        region, column = np.argwhere(~np.isfinite(half))[0]
        raise DataError(
            f"{where}, region {region}: feature value {row[region, column]} in column {column} is "
            "not a finite float16 (at most 65504); extract the image again or rescale the features"
        )
    return half


def check_pixels(boxes: np.ndarray, size: np.ndarray, where: str) -> None:
    """DataError for boxes [R, 4] that look like 0..1, which as pixels would all be one corner."""
    highest = float(boxes.max(initial=0))
    if 0 < highest <= 2 < size.max():
        remedy = "0..1 and not pixels; multiply them by width and height"
        raise DataError(
            f"{where}: boxes go up to {highest:.4g} in an image of {size[0]} x {size[1]}: that is "
            + (remedy if highest <= 1 + ROUNDED else "neither 0..1 nor pixels; correct the boxes")
        )


def normalised_boxes(
    boxes: np.ndarray, size: np.ndarray, where: str, tolerance: float = 1.0
) -> np.ndarray:
    """[R, 4] boxes to float32 0..1 of their image, of pixels if that is what its size is in.

    A box may leave its image by the tolerance, and is clipped: by a pixel, as counted from 1, or by
    as much less as the unit is larger.
    """
    if (size <= 0).any():
        raise DataError(
            f"{where}: image size {size.tolist()} is not positive; correct the image's size"
        )
    limits = np.tile(size, 2).astype(np.float32)
    boxes = boxes.astype(np.float32)
    beyond = np.float32(tolerance)
    inside = np.isfinite(boxes) & (boxes >= -beyond) & (boxes <= limits + beyond)
    ordered = (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
    wrong = np.flatnonzero(~(inside.all(axis=1) & ordered))
    if wrong.size:
        pixels = f"an image of {size[0]} x {size[1]} pixels; correct the box or the image's size"
        raise DataError(
            f"{where}, region {wrong[0]}: box {boxes[wrong[0]].tolist()} is not x1, y1, x2, y2 in "
            + (pixels if (size > 1).any() else "0..1, as the others are; correct the box")
        )
    return np.clip(boxes / limits, 0, 1)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says; ValueError for a key that an object has twice, and the like."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"key {reprlib.repr(twice)} is there twice")
        return found

    return json.loads(text, object_pairs_hook=once)


def checked_relations(given: list[Any], where: str) -> list[Relation]:
    """The relations of a scene graph, from JSON; their confidence is 1 if not given."""
    for relation in given:
        if not _is_relation(relation):
            raise DataError(
                f"{where}: relation {reprlib.repr(relation)} is not [region, "
                '"predicate", region] or [region, "predicate", region, confidence] with integers '
                "as regions; correct it"
            )
    return [(s, predicate, o, float(c[0]) if c else 1.0) for s, predicate, o, *c in given]


def _is_relation(value: Any) -> bool:
    """Nothing is rounded or read as a number that is none: 0.7 and true are no regions."""
    if not isinstance(value, list) or len(value) not in (3, 4):
        return False
    subject, predicate, target, *confidence = value
    return (
        type(subject) is type(target) is int
        and isinstance(predicate, str)
        and bool(predicate.strip())
        and is_unicode(predicate)
        # What is not finite is told with the image, by `encode_relations`.
        and all(type(x) is float or (type(x) is int and abs(x) <= _LARGEST) for x in confidence)
    )


def is_unicode(text: str) -> bool:
    """Not so of what JSON can spell and UTF-8 can't: \\ud800, half of a character of UTF-16."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode_relations(
    relations: list[Relation], predicate_ids: dict[str, int], regions: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """A graph's relations as int32 [E, 3] and their confidences as float32 [E], highest first."""
    triples, scores = [], []
    for subject, predicate, target, confidence in relations:
        if not abs(confidence) <= _LARGEST:
            raise DataError(
                f"{where}: relation {subject} {predicate!r} {target} has confidence {confidence}, "
                "which is not a finite float32; correct scene_graphs.jsonl"
            )
        if not (0 <= subject < regions and 0 <= target < regions):
            raise DataError(
                f"{where}: relation {subject} {predicate!r} {target} names a region that is not in "
                f"0..{regions - 1}; write scene_graphs.jsonl for these regions"
            )
        triples.append((subject, predicate_ids[predicate], target))
        scores.append(confidence)
    found = np.array(scores, np.float32)
    order = np.argsort(-found, kind="stable")
    return np.array(triples, np.int32).reshape(-1, 3)[order], found[order]


def check_relations(
    relations: np.ndarray, scores: np.ndarray, regions: int, predicates: int, where: str
) -> None:
    """DataError unless relations int [E, 3] and scores float [E] are as `schema` promises."""
    if len(relations) != len(scores):
        raise DataError(
            f"{where} has {len(relations)} relations and {len(scores)} relation_scores; give every "
            "relation one"
        )
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        raise DataError(
            f"{where}: relation {wrong[0]} has confidence {scores[wrong[0]]}; give a finite number"
        )
    late = np.flatnonzero(scores[1:] > scores[:-1])
    if late.size:
        before, after = scores[late[0] : late[0] + 2]
        raise DataError(
            f"{where}: relation {late[0] + 1} has confidence {after} and the one before it "
            f"{before}; sort relations and relation_scores by descending confidence"
        )
    limits = np.array([regions, predicates, regions])
    wrong = np.flatnonzero(((relations < 0) | (relations >= limits)).any(axis=1))
    if wrong.size:
        raise DataError(
            f"{where}: relation {wrong[0]} is {relations[wrong[0]].tolist()}; its region, "
            f"predicate, region must be below {limits.tolist()} and not negative"
        )


def check_file_name(name: str, where: str) -> None:
    """DataError for a name that would lead out of the directory it is looked up in."""
    parts = name.replace("\\", "/").split("/")
    drive = re.match(r"[A-Za-z]:[\\/]", name)
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or drive:
        raise DataError(
            f"{where}: file name {name!r} leads out of its directory; give one relative to it"
        )


def check_name(name: str, what: str) -> None:
    """DataError for a name that is no part of a path or that TFDS can't read."""
    if not re.fullmatch(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*", name):
        raise DataError(
            f"{what} {name!r} is no name; use letters, digits and underscores, such as train"
        )
