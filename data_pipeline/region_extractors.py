"""Regions of images: cells of a grid, or what a detector found, with features of a backbone.

Needs the extra `extract`, as `backbones.py` does.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from data_pipeline.backbones import Backbone, Detections, Detector
from data_pipeline.errors import DataError
from data_pipeline.image_files import open_image
from data_pipeline.sources.scene_graphs import intersection_over_union

_SAMPLES = 14  # points along a side of a box: 7 x 7 bins of 2 x 2, as in Faster R-CNN
_OVERLAP = 0.7  # of a box with a better one, from which it is the same object
NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class Pixels:
    """One image as the models take it.

    size: width and height of the image itself.
    backbone: uint8 [S, S, 3].
    detector: uint8 [h, w, 3], or None without a detector.
    """

    size: tuple[int, int]
    backbone: np.ndarray
    detector: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """The regions of one image.

    features: float32 [R, F].
    boxes: float32 [R, 4] x1, y1, x2, y2 in 0..1.
    labels: int32 [R], NO_LABEL where there is none; [0] without a detector.
    """

    features: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


class RegionExtractor(Protocol):
    """What turns images into regions.

    Attributes:
      labels: object classes; may be empty.
      width: F.
      most: regions that an image may have.
      settings: what the regions depend on, fit for JSON.
    """

    labels: list[str]
    width: int
    most: int
    settings: dict[str, Any]

    def load(self, path: Path) -> Pixels:
        """Reads an image; raises BadImage. May be called by several threads."""

    def extract(self, images: Sequence[Pixels]) -> list[Found]:
        """The regions of a batch."""


class GridRegions:
    """A map of features, averaged to grid x grid cells; 0 keeps each cell of the map."""

    def __init__(self, backbone: Backbone, grid: int) -> None:
        """Raises DataError for more cells than the backbone has."""
        if grid > min(backbone.cells):
            h, w = backbone.cells
            raise DataError(
                f"--grid={grid} is more than the {h} x {w} cells of {backbone.name} at "
                f"--image-size={backbone.image_size}; give {min(h, w)} or less, or 0 for all"
            )
        self._backbone, self._grid = backbone, grid
        self._boxes = cell_boxes(*backbone.cells, grid)
        self.labels: list[str] = []
        self.width, self.most = backbone.width, len(self._boxes)
        self.settings = _settings(backbone) | {"grid": grid}

    def load(self, path: Path) -> Pixels:
        image, size = open_image(path, self._backbone.image_size)
        return Pixels(size, _for_backbone(self._backbone, image))

    def extract(self, images: Sequence[Pixels]) -> list[Found]:
        maps = self._backbone.maps(np.stack([image.backbone for image in images]))
        cells = pool_cells(maps, self._grid).cpu().numpy()
        return [Found(features, self._boxes, np.zeros(0, np.int32)) for features in cells]


class DetectedRegions:
    """The best boxes of a detector, with the backbone's features inside of them."""

    def __init__(
        self, backbone: Backbone, detector: Detector, regions: int, least_score: float
    ) -> None:
        """
        Args:
          regions: of an image at most; where nothing is found, the whole image is one.
          least_score: of a box, 0..1.
        """
        self._backbone, self._detector, self._least_score = backbone, detector, least_score
        self._side = max(backbone.image_size, detector.preprocessing.side)
        self.labels = detector.labels
        self.width, self.most = backbone.width, regions
        self.settings = _settings(backbone) | {
            "detector": {"name": detector.name, "sha256": detector.sha256},
            "regions": regions,
            "least_score": least_score,
        }

    def load(self, path: Path) -> Pixels:
        image, size = open_image(path, self._side)
        target = self._detector.target(*size)
        small = image.resize(target, self._detector.preprocessing.resample)
        return Pixels(size, _for_backbone(self._backbone, image), np.asarray(small))

    def extract(self, images: Sequence[Pixels]) -> list[Found]:
        maps = self._backbone.maps(np.stack([image.backbone for image in images]))
        found = []
        for features, seen in zip(maps, self._detect(images), strict=True):
            boxes, labels = self._choose(seen)
            inside = roi_align(features, torch.from_numpy(boxes).to(features.device))
            found.append(Found(inside.cpu().numpy(), boxes, labels))
        return found

    def _detect(self, images: Sequence[Pixels]) -> list[Detections]:
        """Images of one size at a time, so that none needs padding."""
        arrays = [image.detector for image in images if image.detector is not None]
        seen: dict[int, Detections] = {}
        for shape in dict.fromkeys(array.shape for array in arrays):
            same = [i for i, array in enumerate(arrays) if array.shape == shape]
            found = self._detector.detect(np.stack([arrays[i] for i in same]))
            seen |= zip(same, found, strict=True)
        return [seen[i] for i in range(len(arrays))]

    def _choose(self, seen: Detections) -> tuple[np.ndarray, np.ndarray]:
        scores = np.where(seen.scores >= self._least_score, seen.scores, -np.inf)
        kept = suppress(seen.boxes, scores, self.most)
        if not len(kept):
            whole = np.array([[0, 0, 1, 1]], np.float32)
            return whole, np.array([NO_LABEL], np.int32)
        return seen.boxes[kept], seen.labels[kept]


def _settings(backbone: Backbone) -> dict[str, Any]:
    return {
        "backbone": {"name": backbone.name, "sha256": backbone.sha256},
        "image_size": backbone.image_size,
        "grid": None,
        "detector": None,
        "regions": None,
        "least_score": None,
    }


def _for_backbone(backbone: Backbone, image: Image.Image) -> np.ndarray:
    """The whole image as a square: a box in 0..1 means the same in it as in the image."""
    side = backbone.image_size
    return np.asarray(image.resize((side, side), backbone.preprocessing.resample))


def pool_cells(maps: torch.Tensor, grid: int) -> torch.Tensor:
    """[B, D, h, w] -> [B, cells, D], row by row; the mean over the box of `cell_boxes`."""
    if grid:
        maps = torch.nn.functional.adaptive_avg_pool2d(maps, grid)
    return maps.flatten(2).transpose(1, 2)


def cell_boxes(height: int, width: int, grid: int) -> np.ndarray:
    """Which part of the image each cell is the mean of: float32 [cells, 4] in 0..1.

    Where the grid does not divide the map, cells share the rows and columns between them.
    """
    rows, columns = (_ranges(size, grid or size) for size in (height, width))
    boxes = [(x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns]
    return np.array(boxes, np.float32)


def _ranges(size: int, parts: int) -> list[tuple[float, float]]:
    """Where adaptive pooling begins and ends each part, in 0..1."""
    return [
        (i * size // parts / size, math.ceil((i + 1) * size / parts) / size) for i in range(parts)
    ]


def roi_align(features: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Mean features inside of boxes (He et al., Mask R-CNN, 2017: RoIAlign, all bins averaged).

    Args:
      features: [D, h, w], each value in the middle of its cell.
      boxes: [R, 4] x1, y1, x2, y2 in 0..1.

    Returns:
      [R, D].
    """
    steps = (torch.arange(_SAMPLES, device=boxes.device) + 0.5) / _SAMPLES
    x, y = (boxes[:, i, None] + (boxes[:, i + 2] - boxes[:, i])[:, None] * steps for i in (0, 1))
    rows, columns = y[:, :, None].expand(-1, -1, _SAMPLES), x[:, None].expand(-1, _SAMPLES, -1)
    points = torch.stack([columns, rows], dim=-1).flatten(1, 2) * 2 - 1  # [R, samples, 2]
    values = torch.nn.functional.grid_sample(
        features[None], points[None], padding_mode="border", align_corners=False
    )
    return values[0].mean(-1).T


def suppress(boxes: np.ndarray, scores: np.ndarray, most: int) -> np.ndarray:
    """Greedy non-maximum suppression that does not ask for the class.

    Args:
      boxes: [Q, 4] x1, y1, x2, y2.
      scores: [Q]; those that are not finite are left out, and so are boxes without an area.
      most: boxes that are kept.

    Returns:
      Indices of the kept boxes, the best one first.
    """
    sound = np.isfinite(scores) & np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    left = [i for i in np.argsort(-scores, kind="stable") if sound[i]]
    kept: list[int] = []
    while left and len(kept) < most:
        best = left.pop(0)
        kept.append(best)
        overlap = intersection_over_union(boxes[[best]], boxes[left])[0] if left else []
        left = [i for i, shared in zip(left, overlap, strict=True) if shared < _OVERLAP]
    return np.array(kept, np.int64)
