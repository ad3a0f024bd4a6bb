"""What a report takes in beside scores: graded relevances and corrected ground truth."""

import os
from pathlib import Path

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.metrics.corrected import CocoTest, coco_image_ids, coco_test
from xmodal_jax.metrics.graded import read_relevance
from xmodal_jax.metrics.rouge import LONGEST, rouge_relevance
from xmodal_jax.report.collection import Collection


def relevances_of(
    collection: Collection, rouge: Path | None = None, spice: Path | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Relevances [C, I] by name, and notes on what is not there.

    Args:
      collection: ROUGE-L is computed of its captions, where it has any.
      rouge, spice: files of the reference; SPICE needs Java and is only read.

    Raises:
      UserError: a file is not of this collection.
    """
    captions, images = len(collection.caption_image_ids), len(collection.image_ids)
    out, notes = {}, []
    if rouge is not None:
        out["rouge"] = read_relevance(rouge, captions, images)
    elif not collection.captions:
        notes.append("no NDCG: the texts of the captions are not known")
    elif max(len(text.split(" ")) for text in collection.captions) > LONGEST:
        notes.append(f"no NDCG: a caption has more than {LONGEST} words")
    elif len(np.unique(collection.caption_image_ids)) < images:
        notes.append("no NDCG: an image has no caption")
    else:
        threads = os.cpu_count() or 1
        rows = collection.caption_rows()
        out["rouge"] = rouge_relevance(collection.captions, rows, images, threads=threads)
    if spice is not None:
        out["spice"] = read_relevance(spice, captions, images)
    return out, notes


def corrected_of(
    collection: Collection, protocol: str, wanted: bool | None = None
) -> tuple[CocoTest | None, list[str]]:
    """The collection as COCO's test split, and notes on why it is not taken for that.

    wanted: True to fail where it is not; None to find out, which says nothing of other data.

    Raises:
      UserError: it is wanted and cannot be had.
    """
    if wanted is False:
        return None, []
    if wanted and protocol != "full":
        raise UserError(
            f"corrected ground truth is for all 5,000 images at once, not for {protocol}; use full"
        )
    try:
        ids = collection.image_ids
        if collection.image_names:
            ids = coco_image_ids(collection.image_names)
        found = coco_test(ids, collection.caption_rows())
    except UserError as error:
        if wanted:
            raise
        # 5,000 images are likely to be that very split, and whoever has it wants to know.
        likely = len(collection.image_ids) == 5000 and protocol == "full"
        return None, [f"no corrected ground truth: {error}"] if likely else []
    return (found, []) if protocol == "full" else (None, [])
