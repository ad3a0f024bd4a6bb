"""Images as caption files describe them, whatever the layout of the file."""

import dataclasses
from pathlib import Path
from typing import Any


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
    numbered: bool = False  # The file has no ids, and this one counts its images.

    @property
    def where(self) -> str:
        """File and place, for messages."""
        return f"{self.path}" + (f" line {self.line}" if self.line else f", image {self.image_id}")

    def names(self) -> dict[str, str]:
        """What other files may call it, by kind: its id, row, file name, or that's stem."""
        names = {
            "id": str(self.image_id),
            "row": str(self.row),
            "file": self.file_name,
            "stem": Path(self.file_name).stem,
        }
        if self.numbered:
            del names["id"]  # Others would mean their own ids.
        return names


Splits = dict[str, list[Item]]


def as_id(value: Any) -> int:
    """An id, which may be written as text; half an image is none."""
    if isinstance(value, float | bool):
        raise TypeError(f"id {value} is no integer")
    return int(value)


def as_pixels(value: Any) -> int:
    """A side of an image; half a pixel is none."""
    if isinstance(value, bool) or int(value) != float(value):
        raise TypeError(f"{value} is no number of pixels")
    return int(value)


def as_text(value: Any, what: str = "name") -> str:
    """A name or caption; null is none, and would be a file called None."""
    if not isinstance(value, str):
        raise TypeError(f"{what} {value!r} is no text")
    return value


def known_split(name: Any) -> str:
    """The name of a split: what others call "val" or "Val" is the "dev" of this field."""
    name = as_text(name, "split")
    known = name.strip().lower()
    if known in ("val", "valid", "validation"):
        return "dev"
    return known if known in ("train", "restval", "dev", "test") else name
