"""Corrected ground truth for COCO's 5,000 test images: ECCV Caption and Crisscrossed Captions.

COCO calls every caption wrong that was not written for the image, though many are right. ECCV
Caption (Chun et al., ECCV 2022) and CxC (Parekh et al., EACL 2021) had people look. Their lists
come with the package `eccv_caption` (`pip install -e ".[eccv]"`), which is read as data.
"""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.metrics.judgements import Judgements, by_ids

SETS = ("eccv", "cxc")
_REMEDY = 'pip install "eccv-caption>=0.1,<0.2"'
_CAPTIONS = 5  # of an image; a further one is in no list


def _data_directory() -> Path:
    # Found and not imported: the package warns at its import where an optional part is missing.
    spec = importlib.util.find_spec("eccv_caption")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"corrected ground truth needs the package eccv-caption; {_REMEDY}")
    return Path(spec.submodule_search_locations[0]) / "data"


def _lists(name: str) -> dict[int, list[int]]:
    found = json.loads((_data_directory() / f"{name}.json").read_text())
    return {int(k): [int(value) for value in values] for k, values in found.items()}


@dataclasses.dataclass(frozen=True)
class CocoTest:
    """COCO's test images and captions by their ids, as columns of a collection.

    rows: [5000] of the images; columns: [25000] of their first five captions.
    image_ids, caption_ids: COCO's ids of these, in the same order.
    """

    rows: np.ndarray
    columns: np.ndarray
    image_ids: np.ndarray
    caption_ids: np.ndarray

    def judgements(self, name: str) -> dict[str, Judgements]:
        """Of both directions, "i2t" and "t2i"; name: eccv, cxc or original."""
        i2t, t2i = (_lists(f"{name}_{sides}") for sides in ("image_to_caption", "caption_to_image"))
        return {
            "i2t": by_ids(i2t, self.image_ids, self.caption_ids),
            "t2i": by_ids(t2i, self.caption_ids, self.image_ids),
        }


def coco_image_ids(names: Sequence[str]) -> np.ndarray:
    """COCO's ids [I] from file names: COCO_val2014_000000391895.jpg and 391895.jpg are one image.

    Raises:
      UserError: a name does not end in a number.
    """
    found = [re.search(r"(\d+)$", Path(name).stem) for name in names]
    for name, match in zip(names, found, strict=True):
        if match is None:
            raise UserError(f"{name!r} is no file name of COCO, which end in a number")
    return np.array([int(match.group(1)) for match in found if match], np.int64)


def coco_test(image_ids: np.ndarray, caption_rows: np.ndarray) -> CocoTest:
    """Finds COCO's test split in a collection.

    Args:
      image_ids: [I] COCO's id of each image, in any order.
      caption_rows: [C] row of each caption's image; those of one image in the order of its
        annotation, of which the first five count.

    Raises:
      UserError: eccv-caption is not installed, or the collection is not that split.
    """
    wanted = np.load(_data_directory() / "coco_test_ids.npy", allow_pickle=False)
    image_of = _lists("original_caption_to_image")
    captions: dict[int, list[int]] = {}
    for caption in wanted.tolist():
        captions.setdefault(image_of[caption][0], []).append(caption)
    row_of = {int(image): row for row, image in enumerate(image_ids)}
    if missing := [image for image in captions if image not in row_of]:
        raise UserError(
            f"{len(missing):,} of COCO's {len(captions):,} test images are not here, such as "
            f"{missing[0]}; corrected ground truth is for that split (Karpathy's)"
        )
    columns_of: dict[int, list[int]] = {}
    for column, row in enumerate(caption_rows.tolist()):
        columns_of.setdefault(row, []).append(column)
    columns, ids = [], []
    for image, own in captions.items():
        here = columns_of.get(row_of[image], [])[:_CAPTIONS]
        if len(here) < len(own):
            raise UserError(
                f"COCO's image {image} has {len(here)} captions here, not {len(own)}; build the "
                "split with all of them"
            )
        columns += here
        ids += own
    rows = np.array([row_of[image] for image in captions])
    return CocoTest(rows, np.array(columns), np.array(list(captions)), np.array(ids))
