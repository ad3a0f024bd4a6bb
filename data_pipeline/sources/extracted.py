"""Region features that `python -m data_pipeline.extract` computed from a user's own images.

They lie in OUT/extracted/NAME as `part-00000.npz`, ... of a few hundred images each, beside
`settings.json` (what they depend on, and the names of object classes) and `bad_images.txt`.
"""

import dataclasses
import json
import os
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.file_checks import NPZ_ERRORS
from data_pipeline.sources.captions import Splits
from data_pipeline.sources.features import Regions
from data_pipeline.sources.joined import JoinedSource
from data_pipeline.sources.scene_graphs import SceneGraphs

SETTINGS = "settings.json"
_KINDS = {
    **{"names": "U", "reasons": "U", "num_bytes": "i", "counts": "i", "sizes": "i"},
    **{"features": "f", "boxes": "f", "labels": "i"},
}


@dataclasses.dataclass(frozen=True)
class Part:
    """N images with T regions in all, as one file holds them.

    names: str [N] of image files.
    num_bytes: int64 [N] of those files.
    reasons: str [N] why an image could not be used; empty where it could.
    counts: int32 [N] regions of each; 0 where it could not be used.
    sizes: int32 [N, 2] width and height in pixels.
    features: float16 [T, F].
    boxes: float32 [T, 4] x1, y1, x2, y2 in pixels.
    labels: int32 [T] object classes, -1 for none; [0] without a detector.
    """

    names: np.ndarray
    num_bytes: np.ndarray
    reasons: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray
    features: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    def regions(self, row: int, path: Path) -> Regions:
        """Those of one image, of the part that was read from path."""
        here = self._rows(row)
        width, height = (int(x) for x in self.sizes[row])
        labels = self.labels[here] if len(self.labels) else None
        where = f"{path}, image {self.names[row]}"
        return Regions(
            self.features[here],
            where,
            self.boxes[here],
            size=(width, height),
            labels=labels,
            surely_pixels=True,  # A detector may find nothing but a speck in the corner.
        )

    def _rows(self, row: int) -> slice:
        stop = int(self.counts[: row + 1].sum())
        return slice(stop - int(self.counts[row]), stop)

    def fits(self) -> bool:
        """Whether all arrays speak of the same images and regions."""
        arrays = {field: getattr(self, field) for field in _KINDS}
        if any(array.dtype.kind != _KINDS[field] for field, array in arrays.items()):
            return False
        if (self.counts < 0).any() or self.features.ndim != 2:
            return False
        images, regions = self.names.shape[:1], (int(self.counts.sum()),)
        flat = (self.names, self.num_bytes, self.reasons, self.counts)
        return (
            all(array.shape == images for array in flat)
            and self.sizes.shape == (*images, 2)
            and self.features.shape[:1] == regions
            and self.boxes.shape == (*regions, 4)
            and self.labels.shape in (regions, (0,))
        )


def part_paths(directory: Path) -> list[Path]:
    """The files of all parts, in order."""
    return sorted(directory.glob("part-*.npz"))


def write_part(path: Path, part: Part) -> None:
    """Writes a file aside and renames it, so that it is whole. Equal parts give equal bytes."""
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as stream:
        np.savez(stream, **{field: getattr(part, field) for field in _KINDS})
    os.replace(aside, path)


def read_part(path: Path) -> Part:
    """Reads a file and all of its checksums; DataError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            part = Part(**{field: arrays[field] for field in _KINDS})
        if part.fits():
            return part
        reason = "its arrays do not belong together"
    except NPZ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    raise DataError(f"{path} is damaged ({reason}); the command that made it repairs it")


def read_settings(directory: Path) -> dict[str, Any]:
    """What settings.json says."""
    path = directory / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        reason = "it is no object"
    except FileNotFoundError:
        raise DataError(f"{path} is missing; extract the features with --overwrite") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise DataError(f"{path} is damaged ({reason}); extract the features with --overwrite")


class ExtractedFeatures:
    """The features of a directory, by the names of the image files."""

    def __init__(self, directory: Path) -> None:
        """Raises DataError where settings or parts are damaged or missing."""
        self.labels = [str(label) for label in read_settings(directory).get("labels", [])]
        self._places: dict[str, tuple[Path, int]] = {}
        self._held: tuple[Path, Part] | None = None
        for path in part_paths(directory):
            try:
                with np.load(path, allow_pickle=False) as arrays:  # reads only these two of it
                    names, counts = arrays["names"].tolist(), arrays["counts"].tolist()
            except NPZ_ERRORS:
                read_part(path)  # says it
                raise
            for row, (name, count) in enumerate(zip(names, counts, strict=True)):
                if count:
                    self._places[name] = path, row

    def names(self) -> Iterable[str]:
        return self._places.keys()

    def read(self, name: str) -> Regions:
        if name not in self._places:
            raise DataError(f"there are no features of {name}; extract them")
        path, row = self._places[name]
        if self._held is None or self._held[0] != path:
            # A data set is read in the order in which its parts were written: one is enough.
            self._held = path, read_part(path)
        part = self._held[1]
        if row >= len(part.names) or part.names[row] != name:
            raise DataError(f"{path} was written anew while it was read; give the command again")
        return part.regions(row, path)


def extracted_source(
    name: str, captions: Splits, store: ExtractedFeatures, graphs: SceneGraphs | None = None
) -> JoinedSource:
    """Captions joined with extracted features; images without features are left out.

    Raises:
      DataError: nothing of a split would be left.
    """
    return JoinedSource(name, kept(captions, set(store.names())), store, kind="file", graphs=graphs)


def kept(captions: Splits, names: Container[str]) -> Splits:
    """The images that are called by one of the names; DataError for a split that keeps none.

    Without this error a folder that is missing would cost a whole split, unnoticed until a training
    is to be evaluated on it.
    """
    found = {
        split: [item for item in items if item.file_name in names]
        for split, items in captions.items()
    }
    for split, items in captions.items():
        if items and not found[split]:
            raise DataError(
                f"split {split} keeps none of its {len(items)} images, such as "
                f"{items[0].file_name!r}, which is missing or bad; give the directory that has "
                "these images too, correct them, or take the split out of --captions"
            )
    return found
