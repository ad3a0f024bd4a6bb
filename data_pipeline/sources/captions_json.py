"""Captions as JSON: Karpathy's, COCO's, and COCO's with the id files of VSE++.

Files are read as streams: what stays in memory is the captions themselves.
"""

import codecs
import gzip
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.file_checks import check_is_file, open_array
from data_pipeline.json_escapes import find_half_character
from data_pipeline.sources.captions_errors import At, guarded
from data_pipeline.sources.items import Item, Splits, as_id, as_pixels, as_text, known_split

# The most that a compressed file may hold; a small file of zeros would never end.
_MOST_BYTES = 2**34
_DEEPEST = 50
_VSEPP_SPLITS = ("train", "restval", "dev", "test")


@guarded
def read_json(path: Path, split: str | None) -> Splits:
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
        raise DataError(f"{path} has captions of image {lost[0]!r}, which is not among its images")
    # Images without captions occur in COCO's files; they are no part of the task.
    kept = [image for image in images.values() if image["id"] in captions]
    return {split: [_coco_item(i, row, captions[i["id"]], path) for row, i in enumerate(kept)]}


def _check_json(path: Path) -> None:
    """DataError for what parsers pass over.

    Over brackets in brackets in brackets they take for ever, half a character, which is no text,
    becomes a question mark in ijson's, and of a key that is there twice the first value is lost.
    """
    with _open(path) as stream:
        if half := find_half_character(stream):
            raise DataError(f"{path} has half a character (surrogate), {half}; correct it")
    keys: list[set[str]] = []  # of the objects and lists that are open, from the outside
    with _open(path) as stream:
        for event, value in ijson.basic_parse(stream):
            if event == "map_key":
                if value in keys[-1]:
                    raise DataError(f"{path} has {value!r} twice in one object; remove one")
                keys[-1].add(value)
            elif event.startswith("start_"):
                keys.append(set())
                if len(keys) > _DEEPEST:
                    raise DataError(
                        f"{path} is nested more than {_DEEPEST} deep; give a caption file"
                    )
            elif event.startswith("end_"):
                keys.pop()


def _read_karpathy(path: Path) -> Splits:
    splits: Splits = {}
    with _open(path) as stream:
        for row, image in enumerate(ijson.items(stream, "images.item", use_float=True)):
            with At(path, "images[{}]", row):
                sentences = tuple(
                    as_text(sentence["raw"], "caption").strip() for sentence in image["sentences"]
                )
                image_id = image.get("cocoid", image.get("imgid"))
                number = row if image_id is None else as_id(image_id)
                item = Item(
                    *(number, row, as_text(image.get("filename", "")), sentences, path),
                    folder=as_text(image.get("filepath", "")),
                    numbered=image_id is None,
                )
                splits.setdefault(known_split(image["split"]), []).append(item)
    return splits


def _coco_images(path: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    with _open(path) as stream:
        for row, image in enumerate(ijson.items(stream, "images.item", use_float=True)):
            with At(path, "images[{}]", row):
                if found.setdefault(as_id(image["id"]), image) is not image:
                    raise DataError(
                        f"{path} lists image {image['id']!r} twice; remove one of the two"
                    )
                _coco_item(image, row, (), path)
    return found


def _coco_annotations(path: Path) -> Iterator[dict[str, Any]]:
    seen: set[int] = set()
    with _open(path) as stream:
        annotations = ijson.items(stream, "annotations.item", use_float=True)
        for row, annotation in enumerate(annotations):
            with At(path, "annotations[{}]", row):
                number = annotation.get("id")  # One's own files may have none.
                if number is not None and number in seen:
                    raise DataError(
                        f"{path} has annotation {number!r} twice; remove one of the two"
                    )
                seen.add(number)
                as_text(annotation["caption"], "caption")
                hash(annotation["image_id"])  # Whether there is such an image is asked later.
            yield annotation


def _coco_item(image: Mapping[str, Any], row: int, captions: Sequence[str], path: Path) -> Item:
    size = (as_pixels(image["width"]), as_pixels(image["height"])) if "width" in image else None
    texts = tuple(" ".join(caption.split()) for caption in captions)
    return Item(as_id(image["id"]), row, as_text(image["file_name"]), texts, path, size=size)


@guarded
def read_vsepp(directory: Path) -> Splits:
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
                raise DataError(
                    f"{path} has another caption {found['id']!r}; remove one of the two"
                )
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
