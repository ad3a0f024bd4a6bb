"""Caption files of the field: who is in which split, and what was said of whom.

`read_captions` finds out what a file is by looking into it. Files are read as streams: what stays
in memory is the captions themselves.
"""

import codecs
import csv
import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.file_checks import check_file_name, check_is_file, is_unicode, open_array
from data_pipeline.json_escapes import find_half_character

# The most that a compressed file may hold; a small file of zeros would never end.
_MOST_BYTES = 2**34
_DEEPEST = 50
_TABLES = (".csv", ".tsv", ".txt", ".jsonl")
_VSEPP_SPLITS = ("train", "restval", "dev", "test")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One image as a caption file describes it."""

    image_id: int
    row: int  # among all images of the file
    file_name: str
    captions: tuple[str, ...]
    path: Path  # of the file
    line: int = 0  # of its first caption, from 1; 0 in files that are not read by lines
    size: tuple[int, int] | None = None  # width, height in pixels
    folder: str = ""  # in which the image may lie, below the directory of all images

    @property
    def where(self) -> str:
        """File and place, for messages."""
        return f"{self.path}" + (f" line {self.line}" if self.line else f", image {self.image_id}")

    def names(self) -> dict[str, str]:
        """What feature files may call it, by kind: its id, row, file name, or that's stem."""
        return {
            "id": str(self.image_id),
            "row": str(self.row),
            "file": self.file_name,
            "stem": Path(self.file_name).stem,
        }


Splits = dict[str, list[Item]]


def read_captions(
    path: Path,
    *,
    split: str | None = None,
    restval: str = "train",
    held_out: Mapping[str, float] | None = None,
) -> Splits:
    """The images of a caption file, by split and in the order of the file.

    Args:
      path: one of these, found out by its ending and first key:
        Karpathy's JSON (`dataset_coco.json`, also .gz), which names the split of each image;
        COCO's captions JSON, of one split; a CSV (also called .txt), TSV or JSONL table, whose
        columns are `image` and `caption`, and if it has them `split` and `image_id`, one line a
        caption (JSONL: or `captions`, a list); a directory with the id files of VSE++,
        `coco_{train,restval,dev,test}_ids.npy`, beside COCO's captions JSON of 2014.
      split: of a COCO file, and of a table without the column.
      restval: the split that Karpathy's and VSE++'s "restval" goes to; "" leaves it out.
      held_out: of a table that names no splits, the share of images for each split but "train";
        which images is a function of their names.

    Raises:
      DataError: names the file, the place and the remedy.
    """
    if path.is_dir():
        found = _read_vsepp(path)
    elif path.suffix.lower() in _TABLES:
        found = _read_table(path, split, held_out or {})
    else:
        found = _read_json(path, split)
    found = _with_restval(found, restval)
    for name, items in found.items():
        _check(path, name, items)
    if not any(found.values()):
        raise DataError(f"{path} has no image with a caption; give another --captions")
    return found


def first(splits: Splits, limits: Mapping[str, int]) -> Splits:
    """The first so many images of some splits, for a trial or by the custom of a protocol."""
    if unknown := sorted(limits.keys() - splits.keys()):
        raise DataError(f"--first {unknown[0]}=... is no split; there are {', '.join(splits)}")
    return {split: items[: limits.get(split)] for split, items in splits.items()}


def shared_images(splits: Splits) -> list[str]:
    """What images, by file name, are in two splits, for notes; none should be."""
    owners: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for split, items in splits.items():
        for item in items:
            name = item.file_name or f"image {item.image_id}"
            if (other := owners.setdefault(name, split)) != split:
                shared.setdefault((other, split), []).append(name)
    return [
        f"{len(names):,} images are in both {a} and {b}, such as {names[0]}"
        for (a, b), names in shared.items()
    ]


def _with_restval(splits: Splits, restval: str) -> Splits:
    if "restval" not in splits or restval == "restval":
        return splits
    rest = splits.pop("restval")
    if restval:
        splits[restval] = [*splits.get(restval, []), *rest]
    return splits


def _check(path: Path, split: str, items: Sequence[Item]) -> None:
    """Ids are unique in a split, captions are not empty, file names stay where they belong."""
    seen: dict[int, int] = {}
    for item in items:
        where = f"{path}, split {split}, image {item.image_id}"
        if seen.setdefault(item.image_id, item.row) != item.row:
            raise DataError(f"{where} is listed twice; remove one of the two")
        if not 0 <= item.image_id < 2**31:
            raise DataError(f"{where}: ids are 0 .. 2^31 - 1; renumber the images")
        if item.size and not all(0 < side < 2**31 for side in item.size):
            raise DataError(f"{where} has size {item.size}; correct it")
        if not item.captions:
            raise DataError(f"{where} has no caption; give it one, or leave it out")
        for number, caption in enumerate(item.captions):
            if not isinstance(caption, str) or not caption.strip():
                raise DataError(f"{where}: caption {number} is empty; correct it or leave it out")
        for text in (item.file_name, *item.captions):
            if not is_unicode(text):
                raise DataError(f"{where}: {text!r} has half a character (surrogate); correct it")
        check_file_name(item.file_name, where)
        check_file_name(item.folder, where)


def _open(path: Path) -> BinaryIO:
    check_is_file(path)
    packed = path.name.lower().endswith(".gz")
    stream: Any = gzip.open(path) if packed else path.open("rb")  # noqa: SIM115 - callers close it
    if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        stream.seek(0)
    return _Limited(stream, path) if packed else stream  # type: ignore[return-value]


class _Limited:
    """A stream that may not give more than _MOST_BYTES."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream, self._path, self._left = stream, path, _MOST_BYTES

    def __enter__(self) -> "_Limited":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._path} holds more than {_MOST_BYTES} bytes; unpack it yourself")
        return data


_LAYOUT_ERRORS = (KeyError, TypeError, AttributeError, ValueError, OverflowError)


class _At:
    """Names the entry of a file in which a value is missing or is not what it has to be."""

    __slots__ = ("_number", "_path", "_place")

    def __init__(self, path: Path, place: str, number: int) -> None:
        """place: with {} for the number."""
        self._path, self._place, self._number = path, place, number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, _LAYOUT_ERRORS) and not isinstance(error, DataError):
            raise _layout_error(f"{self._path} {self._place.format(self._number)}", error) from None


def _layout_error(where: str, error: BaseException) -> DataError:
    reason = "nothing called " + str(error) if isinstance(error, KeyError) else str(error)
    return DataError(
        f"{where} is not laid out as expected ({type(error).__name__}: {reason}); "
        "python -m data_pipeline.build --help lists the layouts"
    )


def _guarded(read: Callable[..., Splits]) -> Callable[..., Splits]:
    """Whatever is wrong with the syntax of a file becomes one line."""

    @functools.wraps(read)
    def guarded(path: Path, *args: Any) -> Splits:
        try:
            return read(path, *args)
        except DataError:
            raise
        except FileNotFoundError:
            raise DataError(f"{path} does not exist; give a caption file") from None
        except UnicodeDecodeError as error:
            line = _undecodable_line(path)
            where = f"{path} line {line}" if line else f"{path}"
            raise DataError(
                f"{where} is not UTF-8 ({error.reason}); convert the file, e.g. with iconv"
            ) from None
        except SystemError:
            # What ijson's parser in C leaves behind where Python refuses an integer.
            raise DataError(
                f"{path} has an integer of thousands of digits; correct it, or copy the file again"
            ) from None
        except (ijson.JSONError, gzip.BadGzipFile, EOFError, zlib.error) as e:
            # yajl's messages come as bytes.
            first_argument = e.args[0] if e.args else ""
            text = str(e)
            if isinstance(first_argument, bytes):
                text = first_argument.decode("utf-8", "backslashreplace")
            reason = text.strip().split("\n")[0]
            raise DataError(f"{path} is damaged ({reason}); copy it again") from None
        except _LAYOUT_ERRORS as error:
            raise _layout_error(str(path), error) from None

    return guarded


@_guarded
def _read_json(path: Path, split: str | None) -> Splits:
    """Karpathy's JSON if images have sentences, COCO's if there are annotations."""
    _check_json(path)
    with _open(path) as stream:
        for prefix, event, _ in ijson.parse(stream):
            if (prefix, event) == ("annotations", "start_array"):
                break
            if prefix == "images.item.sentences":
                if split is not None:
                    raise DataError(f"{path} names the splits itself; leave out {split}=")
                return _read_karpathy(path)
        else:
            raise DataError(
                f"{path} has neither images with sentences (Karpathy) nor annotations (COCO); "
                "give a caption file"
            )
    if split is None:
        raise DataError(f"{path} names no splits; say which one it is: train={path}")
    images = _coco_images(path)
    captions: dict[int, list[str]] = {}
    for annotation in _coco_annotations(path):
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    if lost := sorted(captions.keys() - images.keys()):
        raise DataError(f"{path} has captions of image {lost[0]}, which is not among its images")
    # Images without captions occur in COCO's files; they are no part of the task.
    kept = [image for image in images.values() if image["id"] in captions]
    return {split: [_coco_item(i, row, captions[i["id"]], path) for row, i in enumerate(kept)]}


def _check_json(path: Path) -> None:
    """DataError for what parsers pass over.

    Over brackets in brackets in brackets they take for ever, and half a character, which is no
    text, becomes a question mark in ijson's.
    """
    with _open(path) as stream:
        if half := find_half_character(stream):
            raise DataError(f"{path} has half a character (surrogate), {half}; correct it")
    depth = 0
    with _open(path) as stream:
        for event, _ in ijson.basic_parse(stream):
            depth += event.startswith("start_") - event.startswith("end_")
            if depth > _DEEPEST:
                raise DataError(f"{path} is nested more than {_DEEPEST} deep; give a caption file")


def _read_karpathy(path: Path) -> Splits:
    splits: Splits = {}
    with _open(path) as stream:
        for row, image in enumerate(ijson.items(stream, "images.item", use_float=True)):
            with _At(path, "images[{}]", row):
                sentences = tuple(
                    _as_text(sentence["raw"], "caption").strip() for sentence in image["sentences"]
                )
                image_id = image.get("cocoid", image.get("imgid", row))
                item = Item(
                    *(_as_id(image_id), row, _as_text(image.get("filename", "")), sentences, path),
                    folder=_as_text(image.get("filepath", "")),
                )
                splits.setdefault(_known_split(image["split"]), []).append(item)
    return splits


def _as_id(value: Any) -> int:
    """An id, which may be written as text; half an image is none."""
    if isinstance(value, float | bool):
        raise TypeError(f"id {value} is no integer")
    return int(value)


def _as_text(value: Any, what: str = "name") -> str:
    """A name or caption; null is none, and would be a file called None."""
    if not isinstance(value, str):
        raise TypeError(f"{what} {value!r} is no text")
    return value


def _known_split(name: Any) -> str:
    """What others call "val" is the "dev" of this field."""
    name = _as_text(name, "split")
    return "dev" if name in ("val", "valid", "validation") else name


def _coco_images(path: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    with _open(path) as stream:
        for row, image in enumerate(ijson.items(stream, "images.item", use_float=True)):
            with _At(path, "images[{}]", row):
                if found.setdefault(_as_id(image["id"]), image) is not image:
                    raise DataError(
                        f"{path} lists image {image['id']} twice; remove one of the two"
                    )
                _coco_item(image, row, (), path)
    return found


def _coco_annotations(path: Path) -> Iterator[dict[str, Any]]:
    seen: set[int] = set()
    with _open(path) as stream:
        annotations = ijson.items(stream, "annotations.item", use_float=True)
        for row, annotation in enumerate(annotations):
            with _At(path, "annotations[{}]", row):
                number = annotation.get("id")  # One's own files may have none.
                if number is not None and number in seen:
                    raise DataError(f"{path} has annotation {number} twice; remove one of the two")
                seen.add(number)
                _as_text(annotation["caption"], "caption")
                hash(annotation["image_id"])  # Whether there is such an image is asked later.
            yield annotation


def _coco_item(image: Mapping[str, Any], row: int, captions: Sequence[str], path: Path) -> Item:
    size = (int(image["width"]), int(image["height"])) if "width" in image else None
    texts = tuple(" ".join(caption.split()) for caption in captions)
    return Item(_as_id(image["id"]), row, _as_text(image["file_name"]), texts, path, size=size)


@_guarded
def _read_vsepp(directory: Path) -> Splits:
    """`coco_*_ids.npy` hold caption ids, those of an image together; COCO's JSON the captions."""
    files = sorted(directory.glob("captions_*.json*"))
    if not files:
        raise DataError(f"{directory} has no captions_*.json; add COCO's captions of 2014")
    images: dict[int, dict[str, Any]] = {}
    captions: dict[int, tuple[int, str]] = {}
    for path in files:
        _check_json(path)
        images |= _coco_images(path)
        for found in _coco_annotations(path):
            caption = found["image_id"], found["caption"]
            if captions.setdefault(found["id"], caption) != caption:
                raise DataError(f"{path} has another caption {found['id']}; remove one of the two")
    splits: Splits = {}
    for split in _VSEPP_SPLITS:
        path = directory / f"coco_{split}_ids.npy"
        if path.exists():
            splits[split] = _vsepp_items(path, images, captions)
    if not splits:
        raise DataError(f"{directory} has no coco_train_ids.npy or the like; add those of VSE++")
    return splits


def _vsepp_items(
    path: Path, images: Mapping[int, Mapping[str, Any]], captions: Mapping[int, tuple[int, str]]
) -> list[Item]:
    ids = open_array(path)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(f"{path} is {ids.dtype}{list(ids.shape)}; it must be caption ids [N]")
    if unknown := [int(i) for i in ids if int(i) not in captions]:
        raise DataError(
            f"{path} names caption {unknown[0]}, which no captions_*.json beside it has"
        )
    if not len(ids):
        raise DataError(
            f"{path} names no caption; copy it again, or remove it to build without this split"
        )
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"{path} names caption {values[counts > 1][0]} more than once; write it again"
        )
    groups = itertools.groupby((captions[int(i)] for i in ids), key=lambda found: found[0])
    return [
        _coco_item(images[image_id], row, [text for _, text in group], path)
        for row, (image_id, group) in enumerate(groups)
    ]


@_guarded
def _read_table(path: Path, split: str | None, held_out: Mapping[str, float]) -> Splits:
    """A CSV, TSV or JSONL file; the captions of an image need not follow each other."""
    texts: dict[tuple[str, str], list[str]] = {}
    ids: dict[tuple[str, str], int] = {}
    numbers: dict[str, int] = {}
    lines: dict[tuple[str, str], int] = {}
    split_of: dict[str, tuple[str, str]] = {}
    drawn = False
    check_is_file(path)
    rows = _jsonl_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    for line, row in rows:
        with _At(path, "line {}", line):
            name = row.get("image") or row.get("file_name")
            if not isinstance(name, str) or not name:
                raise DataError(f"{path} line {line} has no `image`, the name of an image file")
            found = _captions_of(row)
            if not found:
                raise DataError(f"{path} line {line} ({name}) has no `caption`; write one a line")
            given = row.get("split")
            named = split if given in (None, "") else _known_split(given)
            drawn = drawn or not named
            key = named or _drawn_split(name, held_out), name
            if (other := split_of.setdefault(name, key)) != key:
                raise DataError(
                    f"{path} line {line}: {name} is in {key[0]} here and in {other[0]} on line "
                    f"{lines[other]}; an image has one split, on each of its lines"
                )
            number = numbers.setdefault(name, len(numbers))
            image_id = _as_id(row["image_id"]) if row.get("image_id") not in (None, "") else number
            if ids.setdefault(key, image_id) != image_id:
                raise DataError(f"{path} line {line}: {name} is image {ids[key]} and {image_id}")
            texts.setdefault(key, []).extend(found)
            lines.setdefault(key, line)
    for name in held_out if drawn else ():
        # Of few images a share may be none; and a training is then evaluated on nothing.
        if held_out[name] and not any(split == name for split, _ in texts):
            print(
                f"note: {path}: by the hash of its name no image of {len(texts)} fell to {name}; "
                f"give a larger --{name}, or a column `split`",
                file=sys.stderr,
            )
    splits: Splits = {}
    for key, captions in texts.items():
        item = Item(ids[key], numbers[key[1]], key[1], tuple(captions), path, lines[key])
        splits.setdefault(key[0], []).append(item)
    order = {name: number for number, name in enumerate(("train", "dev", "val", "test"))}
    return dict(sorted(splits.items(), key=lambda pair: order.get(pair[0], len(order))))


def _captions_of(row: Mapping[str, Any]) -> list[str]:
    """The captions of a row; none if any of them is empty or no text."""
    given = row["captions"] if isinstance(row.get("captions"), list) else [row.get("caption")]
    texts = [text.strip() for text in given if isinstance(text, str) and text.strip()]
    return texts if len(texts) == len(given) else []


def _drawn_split(name: str, held_out: Mapping[str, float]) -> str:
    """The split of an image by a hash of its name: adding images moves none of the others."""
    position = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
    for split, share in held_out.items():
        if position < share:
            return split
        position -= share
    return "train"


def _undecodable_line(path: Path) -> int:
    """The first line that is not UTF-8, from 1; 0 in a file that is not read by lines."""
    if path.suffix.lower() not in _TABLES:
        return 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    tabs = path.suffix.lower() == ".tsv"
    # In TSV a quotation mark is a sign like any other.
    form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True, **form)
        try:
            columns = reader.fieldnames or []
        except csv.Error as error:
            raise DataError(f"{path} line 1: {error}; it must name the columns") from None
        if "caption" not in columns or not {"image", "file_name"} & set(columns):
            raise DataError(
                f"{path} has the columns {', '.join(map(str, columns)) or '(none)'}; its first "
                "line must name `image` and `caption`"
            )
        try:
            for row in reader:
                if surplus := row.pop(None, None):
                    raise DataError(
                        f"{path} line {reader.line_num} goes on after its last column with "
                        f"{surplus[0]!r}; put the caption into quotation marks"
                    )
                if any("\n" in value for value in row.values() if value):
                    raise DataError(
                        f"{path} line {reader.line_num} ends a field that began on an earlier "
                        "line; close the quotation marks where the caption ends"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            long = "limit" in str(error)
            remedy = "close the quotation marks before it, or shorten it" if long else "quote it"
            raise DataError(f"{path} line {reader.line_num}: {error}; {remedy}") from None


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise DataError(f"{path} line {number} is not JSON; write the line again") from None
            if not isinstance(row, dict):
                raise DataError(f'{path} line {number} is no object like {{"image": "a.jpg", ...}}')
            yield number, row
