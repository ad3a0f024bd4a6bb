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
    """COCO's test images and captions in the order of a collection.

    image_ids: [I] COCO's ids; caption_ids: [C] COCO's ids of the captions that are in the lists.
    columns: [C] of these captions in the collection.
    """

    image_ids: np.ndarray
    caption_ids: np.ndarray
    columns: np.ndarray

    def judgements(self, name: str) -> dict[str, Judgements]:
        """Of both directions, "i2t" and "t2i", over `columns`; name: eccv, cxc or original."""
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
    found = [re.search(r"(?<!\d)(\d{1,18})$", Path(name).stem) for name in names]
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
    if differing := set(captions) ^ set(image_ids.tolist()):
        raise UserError(
            f"corrected ground truth is for COCO's {len(captions):,} test images (Karpathy's "
            f"split); {len(differing):,} images are only here or only there, such as "
            f"{min(differing)}"
        )
    left = {image: iter(own) for image, own in captions.items()}
    ids = np.array([next(left[int(image_ids[row])], -1) for row in caption_rows], np.int64)
    if missing := set(wanted.tolist()) - set(ids.tolist()):
        raise UserError(
            f"{len(missing)} captions of COCO's test images are not here, such as one of image "
            f"{image_of[min(missing)][0]}; build the split with all of them"
        )
    columns = np.flatnonzero(ids >= 0)  # A sixth caption of an image is in no list.
    return CocoTest(image_ids, ids[columns], columns)
