"""The images and captions of a split: ids, and where they are known file names and texts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from xmodal_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Collection:
    """I images and C captions.

    image_ids: [I], each once; caption_image_ids: [C] the image of each caption.
    image_names: I file names, or empty; captions: C texts, or empty.
    caption_names: C names, or empty. Where there are some, as in the files of TREC, images and
      captions are known by their names alone: ids are numbers in the order of these.
    """

    image_ids: np.ndarray
    caption_image_ids: np.ndarray
    image_names: Sequence[str] = ()
    captions: Sequence[str] = ()
    caption_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        for what, found, wanted in (
            ("image names", self.image_names, self.image_ids),
            ("captions", self.captions, self.caption_image_ids),
            ("names of captions", self.caption_names, self.caption_image_ids),
        ):
            if len(found) not in (0, len(wanted)):
                raise UserError(f"{len(found)} {what} for {len(wanted)} ids; give one for each")
        if len(np.unique(self.image_ids)) != len(self.image_ids):
            raise UserError("an image id is there twice; give each image once")
        unknown = np.setdiff1d(self.caption_image_ids, self.image_ids)
        if len(unknown):
            raise UserError(f"a caption is of image {unknown[0]}, which is not among the images")

    def caption_rows(self) -> np.ndarray:
        """[C] row of each caption's image."""
        order = np.argsort(self.image_ids, kind="stable")
        return order[np.searchsorted(self.image_ids[order], self.caption_image_ids)]

    def image_label(self, row: int) -> str:
        """The file name of an image, or its id."""
        return self.image_names[row] if self.image_names else f"image {self.image_ids[row]}"

    def caption_label(self, column: int) -> str:
        """The text of a caption, or its name or number."""
        texts = self.captions or self.caption_names
        return texts[column] if texts else f"caption {column}"
