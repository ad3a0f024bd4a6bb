"""Captions as tables: CSV, TSV or JSONL, a line a caption."""

import csv
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.file_checks import check_is_file, parse_json
from data_pipeline.sources.captions_errors import At, guarded
from data_pipeline.sources.items import Item, Splits, as_id, known_split


@guarded
def read_table(path: Path, split: str | None, held_out: Mapping[str, float]) -> Splits:
    """A CSV, TSV or JSONL file; the captions of an image need not follow each other."""
    texts: dict[tuple[str, str], list[str]] = {}
    ids: dict[tuple[str, str], int] = {}
    numbers: dict[str, int] = {}
    lines: dict[tuple[str, str], int] = {}
    numbered: set[tuple[str, str]] = set()  # without an id of their own
    split_of: dict[str, tuple[str, str]] = {}
    drawn = False
    check_is_file(path)
    rows = _jsonl_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    for line, row in rows:
        with At(path, "line {}", line):
            name = row.get("image") or row.get("file_name")
            if not isinstance(name, str) or not name:
                raise DataError(f"{path} line {line} has no `image`, the name of an image file")
            found = _captions_of(row)
            if "caption" in row and "captions" in row:
                raise DataError(f"{path} line {line} has `caption` and `captions`; keep one")
            if not found:
                raise DataError(f"{path} line {line} ({name}) has no `caption`; write one a line")
            of_row = row.get("split")
            named = split if of_row in (None, "") else known_split(of_row)
            drawn = drawn or not named
            key = named or _drawn_split(name, held_out), name
            if (other := split_of.setdefault(name, key)) != key:
                raise DataError(
                    f"{path} line {line}: {name} is in {key[0]} here and in {other[0]} on line "
                    f"{lines[other]}; an image has one split, on each of its lines"
                )
            number = numbers.setdefault(name, len(numbers))
            if row.get("image_id") in (None, ""):
                image_id = number
                numbered.add(key)
            else:
                image_id = as_id(row["image_id"])
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
        item = Item(
            *(ids[key], numbers[key[1]], key[1], tuple(captions), path, lines[key]),
            numbered=key in numbered,
        )
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
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise DataError(f"{path} has two columns {twice[0]!r}; rename or remove one")
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
            # The inner one has read the line; the outer one has not counted it yet.
            line = reader.reader.line_num
            raise DataError(f"{path} line {line}: {error}; {remedy}") from None


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except (ValueError, RecursionError) as error:
                reason = str(error).split("\n")[0]
                raise DataError(
                    f"{path} line {number} is not JSON ({reason}); write the line again"
                ) from None
            if not isinstance(row, dict):
                raise DataError(f'{path} line {number} is no object like {{"image": "a.jpg", ...}}')
            yield number, row
