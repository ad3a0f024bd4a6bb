"""Caption files of the field: who is in which split, and what was said of whom.

`read_captions` finds out what a file is by looking into it.
"""

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.file_checks import check_file_name, is_unicode
from data_pipeline.sources.captions_errors import TABLES
from data_pipeline.sources.captions_json import read_json, read_vsepp
from data_pipeline.sources.captions_table import read_table
from data_pipeline.sources.items import Item, Splits


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
        found = read_vsepp(path)
    elif path.suffix.lower() in TABLES:
        found = read_table(path, split, held_out or {})
    else:
        found = read_json(path, split)
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
            name = posixpath.normpath(item.file_name or f"image {item.image_id}")
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
