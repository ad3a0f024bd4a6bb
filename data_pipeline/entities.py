"""Flickr30K Entities: which boxes the phrases of a caption speak of (Plummer et al., IJCV 2017).

The public annotations are a directory with `Sentences/IMAGE.txt`, five lines such as

    [/EN#5/people A man] in [/EN#6/clothing an orange hat] starring at something .

and `Annotations/IMAGE.xml`, whose objects have the numbers of the entities and a box in pixels.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import DataError

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/\w+)+ ([^\]]*)\]")


class Phrase(NamedTuple):
    """Characters start to end (exclusive) of a caption, and its boxes [K, 4] in 0..1."""

    start: int
    end: int
    boxes: np.ndarray


class Entities(NamedTuple):
    """Phrases with boxes of each caption, in the given order, and captions that are not found."""

    phrases: list[list[Phrase]]
    unknown: int


def read_entities(
    directory: Path, file_names: Sequence[str], captions: Sequence[Sequence[str]]
) -> Entities:
    """The phrases of captions, which are recognised by their letters: spaces may differ.

    Args:
      directory: with Sentences and Annotations.
      file_names: of images, such as 1000092795.jpg.
      captions: the texts of each image.

    Raises:
      DataError: the directory has another layout, or a file of it is damaged.
    """
    for part in ("Sentences", "Annotations"):
        if not (directory / part).is_dir():
            raise DataError(f"{directory} has no {part}; give the directory of Flickr30K Entities")
    phrases: list[list[Phrase]] = []
    unknown = 0
    for name, texts in zip(file_names, captions, strict=True):
        found = _of_image(directory, Path(name).stem)
        for text in texts:
            plain, spans = found.get(_letters(text), ("", []))
            unknown += not plain
            phrases.append(_moved(spans, plain, text))
    if phrases and unknown == len(phrases):
        raise DataError(
            f"{directory} knows none of the {len(phrases):,} captions, such as {captions[0][0]!r} "
            f"of {file_names[0]}; give the annotations of these images"
        )
    return Entities(phrases, unknown)


def _letters(text: str) -> str:
    # A letter whose small form is two would move all that follow it.
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in "".join(text.split()))


def _of_image(directory: Path, image: str) -> dict[str, tuple[str, list[Phrase]]]:
    """By the letters of a sentence: the sentence and its phrases that have boxes."""
    path = directory / "Sentences" / f"{image}.txt"
    if not path.is_file():
        return {}
    boxes = _boxes(directory / "Annotations" / f"{image}.xml")
    out = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        plain, spans, last = "", [], 0
        for match in _PHRASE.finditer(line):
            plain += line[last : match.start()]
            start, last = len(plain), match.end()
            plain += match.group(2)
            if (own := boxes.get(match.group(1))) is not None:
                spans.append(Phrase(start, len(plain), own))
        plain += line[last:]
        if "[/EN" in plain:
            raise DataError(f"{path} has a phrase that does not end: {line[:80]!r}; copy it again")
        out[_letters(plain)] = (plain, spans)
    return out


def _boxes(path: Path) -> dict[str, np.ndarray]:
    """[K, 4] in 0..1 by the number of an entity; scenes and what is not seen have none."""
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (float(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
        out: dict[str, list[list[float]]] = {}
        for item in root.iter("object"):
            box = item.find("bndbox")
            if box is None:
                continue
            corners = [float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
            scale = (width, height, width, height)
            inside = [value / size for value, size in zip(corners, scale, strict=True)]
            for name in item.findall("name"):
                out.setdefault(name.text or "", []).append(inside)
    except (OSError, ElementTree.ParseError, ValueError, ZeroDivisionError) as error:
        raise DataError(f"{path} is no annotation of Flickr30K Entities: {error}") from error
    return {name: np.clip(np.array(found, np.float32), 0, 1) for name, found in out.items()}


def _moved(spans: list[Phrase], plain: str, text: str) -> list[Phrase]:
    """The same letters in a text with other spaces."""
    before = np.cumsum([0] + [not char.isspace() for char in plain])
    places = [k for k, char in enumerate(text) if not char.isspace()]
    return [
        Phrase(places[before[p.start]], places[before[p.end] - 1] + 1, p.boxes)
        for p in spans
        if before[p.end] > before[p.start]
    ]
