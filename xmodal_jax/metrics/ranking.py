"""Retrieval metrics from a score matrix, in plain numpy.

Recalls and ranks are means over all orders of equal scores (see `placement`): a model that gives
every pair the same score gets chance level, not 100 %. The median rank is that of expected ranks.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.metrics.judgements import same_image
from xmodal_jax.metrics.placement import Placement

RECALL_AT = (1, 5, 10)
PROTOCOLS = ("full", "5fold")
Index = slice | np.ndarray


def placement(scores: np.ndarray, query_ids: np.ndarray, target_ids: np.ndarray) -> Placement:
    """Where each query's first positive target stands.

    Args:
      scores: [Q, T], finite.
      query_ids: [Q] image id of each query; target_ids: [T]; equal ids are a positive pair.

    Raises:
      UserError: a query has no positive; the message names it.
    """
    found = np.empty((len(scores), 3), np.int64)
    for q, positives, _ in same_image(query_ids, target_ids):
        row, own = scores[q], scores[q, positives]
        best = own.max()
        found[q] = [np.count_nonzero(x) for x in (row > best, row == best, own == best)]
    return Placement(*found.T)


def summary(first: Placement) -> dict[str, float]:
    """R@1/5/10 in percent, median rank (as published: floor of the median, plus 1), mean rank."""
    out = {f"r{k}": float(100 * np.mean(first.recall(k))) for k in RECALL_AT}
    rank = first.rank()
    out["median_rank"] = float(np.floor(np.median(rank)) + 1)
    out["mean_rank"] = float(np.mean(rank) + 1)
    return out


def placement_metrics(i2t: Placement, t2i: Placement) -> dict[str, float]:
    """Metrics of both directions and rsum, the sum of the six recalls.

    Args:
      i2t, t2i: of I images that look for captions, and of C captions that look for images.

    Returns:
      i2t/r1, ..., t2i/mean_rank, rsum.
    """
    sides = {"i2t": summary(i2t), "t2i": summary(t2i)}
    out = {f"{side}/{k}": v for side, found in sides.items() for k, v in found.items()}
    out["rsum"] = sum(out[f"{side}/r{k}"] for side in sides for k in RECALL_AT)
    return out


def folds(
    image_ids: np.ndarray, caption_image_ids: np.ndarray, protocol: str
) -> Iterator[tuple[slice, Index]]:
    """Rows (images) and columns (captions) of each part of the data that a protocol ranks alone.

    `scores[rows][:, columns]` is the part's score matrix; the metrics are the mean over the parts.
    `full` is all of it; `5fold`, as for COCO 1K, consecutive fifths of the images with their
    captions: COCO's 5,000 test images give five folds of 1,000.

    Raises:
      UserError: an unknown protocol, or a number of images that five does not divide.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r} is not known; use {' or '.join(PROTOCOLS)}")
    if protocol == "full":
        yield slice(None), slice(None)
        return
    if len(image_ids) % 5:
        raise UserError(
            f"protocol 5fold needs a multiple of 5 images, not {len(image_ids)}; use full"
        )
    size = len(image_ids) // 5
    for start in range(0, len(image_ids), size):
        rows = slice(start, start + size)
        yield rows, np.flatnonzero(np.isin(caption_image_ids, image_ids[rows]))


def mean_metrics(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the parts."""
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
