"""A built-in data set: pictures of coloured shapes, captions, and the truth about both.

It needs no download, is made in seconds, and every word of every caption is linked to the region
it speaks of, so that alignments can be scored. Scenes come in groups of four near-twins (records
4k..4k+3 of a split, see scenes.py): telling which words apply somewhere in a picture is not
enough, they must be bound to the right thing and the right side of a relation.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.scene_captions import CAPTIONS, Caption, caption_scene
from data_pipeline.scene_drawing import draw_scene
from data_pipeline.scene_regions import FEATURE_WIDTH, REGIONS, place_boxes, region_features
from data_pipeline.scenes import (
    GROUP,
    PREDICATES,
    SHAPES,
    SIDE,
    Relation,
    Scene,
    relations_of,
    sample_group,
)
from data_pipeline.sources.source import Contents

BACKGROUND = "background"  # the label of distractor regions
_MOST = 1_000_000  # examples a split, which keeps image_id unique
# What a generator is for, the last part of its seed.
_LAYOUT, _PAINT, _REGIONS, _CAPTIONS = range(4)


class SyntheticScenes:
    """Scenes of `sizes[split]` examples a split, all of it decided by the seed.

    An example depends on the seed, the name of its split and its number alone: a larger split
    begins with the same examples, and the other splits do not matter. With `images_dir`,
    `read` saves each picture there as PNG.

    Raises DataError for a size that is negative or above a million.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        seed: int = 0,
        name: str = "scenes",
        images_dir: str | None = None,
    ) -> None:
        for split, size in sizes.items():
            if not 0 <= size <= _MOST:
                raise DataError(f"sizes[{split!r}]={size}; give a number from 0 to {_MOST}")
        if seed < 0:
            raise DataError(f"seed={seed} is negative; give 0 or more")
        self.name = name
        self._sizes = dict(sizes)
        self._seed = seed
        self._images_dir = Path(images_dir) if images_dir is not None else None
        self._last_group: tuple[tuple[str, int], list[Scene]] = ("", -1), []

    @property
    def labels(self) -> list[str]:
        """Names of object_labels; the first is that of distractors."""
        return [BACKGROUND, *SHAPES]

    @property
    def predicates(self) -> list[str]:
        """Names of the predicates in relations."""
        return list(PREDICATES)

    @property
    def feature_width(self) -> int:
        """F, the width of a region's features."""
        return FEATURE_WIDTH

    def splits(self) -> list[str]:
        """Names of the splits, in the order they were given."""
        return list(self._sizes)

    def contents(self, split: str) -> Contents:
        """Ids of the examples, and five captions each."""
        self._check(split)
        first = self.splits().index(split) * _MOST
        count = self._sizes[split]
        return Contents(first + np.arange(count), np.full(count, CAPTIONS))

    def scene(self, split: str, index: int) -> Scene:
        """What is in a picture, in symbols."""
        self._check(split, index)
        return self._group(split, index)[index % GROUP]

    def image(self, split: str, index: int) -> Image.Image:
        """The picture of an example, drawn again: the one its features were taken from."""
        return self._draw(split, index, self.scene(split, index))

    def save_image(self, split: str, index: int) -> None:
        """Writes the picture of an example into the directory of pictures."""
        self._save(self.image(split, index), split, index)

    def _save(self, picture: Image.Image, split: str, index: int) -> None:
        assert self._images_dir is not None
        self._images_dir.mkdir(parents=True, exist_ok=True)
        picture.save(self._images_dir / self._file_name(split, index))

    def _file_name(self, split: str, index: int) -> str:
        return f"{self.name}_{split}_{index:06d}.png"

    def _check(self, split: str, index: int = 0) -> None:
        if split not in self._sizes:
            raise DataError(f"no split {split!r} in {self.name!r}; use one of {self.splits()}")
        if index and not 0 <= index < self._sizes[split]:
            raise DataError(
                f"index={index} is outside split {split!r}; use 0 to {self._sizes[split] - 1}"
            )

    def _rng(self, split: str, number: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, zlib.crc32(split.encode()), number, purpose))

    def _group(self, split: str, index: int) -> list[Scene]:
        # Kept: the next three examples are of the same group.
        key = split, index // GROUP
        if self._last_group[0] != key:
            self._last_group = key, sample_group(self._rng(*key, _LAYOUT))
        return self._last_group[1]

    def _draw(self, split: str, index: int, scene: Scene) -> Image.Image:
        return draw_scene(scene, self._rng(split, index, _PAINT))

    def read(self, split: str, index: int) -> dict:
        """An example; R = 12 regions in random order.

        Keys: file_name str; size int32 [2] (width, height); regions f16 [R,F]; boxes f32 [R,4]
        (x1, y1, x2, y2 in 0..1); object_labels int32 [R]; relations int32 [E,3] (region,
        predicate, region); relation_scores f32 [E]; captions, five str; links int32 [L,4]
        (caption, first character, character after the last, region).
        """
        self._check(split, index)
        group = self._group(split, index)
        scene = group[index % GROUP]
        picture = self._draw(split, index, scene)
        rng = self._rng(split, index, _REGIONS)
        boxes = place_boxes(scene, rng)
        order = rng.permutation(REGIONS)  # the region now at k was at order[k]
        region_of = np.argsort(order)
        labels = np.zeros(REGIONS, np.int32)
        labels[: len(scene)] = [thing.shape + 1 for thing in scene]
        captions = caption_scene(self._rng(split, index, _CAPTIONS), group, index % GROUP)
        relations = _relations(boxes[: len(scene)], region_of)
        if self._images_dir is not None:
            self._save(picture, split, index)
        return {
            "file_name": self._file_name(split, index),
            "size": np.array([SIDE, SIDE], np.int32),
            "regions": region_features(picture, boxes[order]).astype(np.float16),
            "boxes": boxes[order],
            "object_labels": labels[order],
            "relations": relations,
            "relation_scores": np.ones(len(relations), np.float32),
            "captions": [caption.text for caption in captions],
            "links": _links(captions, region_of),
        }


def _relations(boxes: np.ndarray, region_of: np.ndarray) -> np.ndarray:
    """Relations [E,3] among things with boxes [N,4], thing i being region region_of[i]."""
    found: list[Relation] = relations_of([tuple(box) for box in boxes.tolist()])
    rows = [(region_of[i], predicate, region_of[j]) for i, predicate, j in found]
    return np.array(rows, np.int32).reshape(-1, 3)


def _links(captions: list[Caption], region_of: np.ndarray) -> np.ndarray:
    """Links [L,4] of all captions, thing i being region region_of[i]."""
    rows = [
        (number, start, end, region_of[thing])
        for number, caption in enumerate(captions)
        for start, end, thing in caption.links
    ]
    return np.array(rows, np.int32).reshape(-1, 4)
