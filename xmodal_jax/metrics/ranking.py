"""Retrieval metrics from a score matrix, in plain numpy.

A rank is 0-based and expected: an item among t equally scored negatives has its mean position over
all orders of the tie. A model that gives every pair the same score therefore gets chance level, not
100 %.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from xmodal_jax.errors import UserError

RECALL_AT = (1, 5, 10)
PROTOCOLS = ("full", "5fold")
Index = slice | np.ndarray


def _first_positive_rank(scores: np.ndarray, positive: np.ndarray) -> float:
    """Expected 0-based rank of the best-placed positive of one query."""
    best = scores[positive].max()
    negatives = scores[~positive]
    above = np.count_nonzero(negatives > best)
    tied = np.count_nonzero(negatives == best)
    # k positives and t negatives in random order: t / (k + 1) negatives precede the first positive.
    return above + tied / (np.count_nonzero(scores[positive] == best) + 1)


def ranks(scores: np.ndarray, query_ids: np.ndarray, target_ids: np.ndarray) -> np.ndarray:
    """Expected 0-based rank [Q] of each query's best-placed positive target.

    Args:
      scores: [Q, T].
      query_ids: [Q] image id of each query; target_ids: [T]; equal ids are a positive pair.

    Raises:
      UserError: a score is not finite, or a query has no positive; the message names it.
    """
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        q, t = bad[0]
        raise UserError(
            f"score of query {q} (image {query_ids[q]}) with target {t} (image {target_ids[t]}) "
            f"is {scores[q, t]}; {len(bad)} scores are not finite"
        )
    out = np.empty(len(scores))
    for q, row in enumerate(scores):
        positive = target_ids == query_ids[q]
        if not positive.any():
            raise UserError(f"query {q} (image {query_ids[q]}) has no positive target")
        out[q] = _first_positive_rank(row, positive)
    return out


def summary(rank: np.ndarray) -> dict[str, float]:
    """R@1/5/10 in percent, median rank (as published: floor of the median, plus 1), mean rank."""
    out = {f"r{k}": float(100 * np.mean(rank < k)) for k in RECALL_AT}
    out["median_rank"] = float(np.floor(np.median(rank)) + 1)
    out["mean_rank"] = float(np.mean(rank) + 1)
    return out


def retrieval_metrics(
    scores: np.ndarray, image_ids: np.ndarray, caption_image_ids: np.ndarray
) -> dict[str, float]:
    """Metrics of both directions and rsum, the sum of the six recalls.

    Args:
      scores: [I, C].
      image_ids: [I]; caption_image_ids: [C], the image that each caption belongs to.

    Returns:
      i2t/r1, ..., t2i/mean_rank, rsum; i2t ranks captions for an image, t2i images for a caption.
    """
    i2t = ranks(scores, image_ids, caption_image_ids)
    return rank_metrics(i2t, ranks(scores.T, caption_image_ids, image_ids))


def rank_metrics(i2t: np.ndarray, t2i: np.ndarray) -> dict[str, float]:
    """`retrieval_metrics` from the 0-based ranks of both directions, [I] and [C].

    Re-ranking scores other pairs for each direction, so that no one matrix gives both.
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


def protocol_metrics(
    scores: np.ndarray, image_ids: np.ndarray, caption_image_ids: np.ndarray, protocol: str = "full"
) -> dict[str, float]:
    """Metrics under a protocol: `full`, or `5fold` as for COCO 1K.

    `5fold` takes consecutive fifths of the images with their captions and averages the metrics;
    COCO's 5,000 test images give five folds of 1,000.

    Raises:
      UserError: an unknown protocol, or a number of images that five does not divide.
    """
    parts = []
    for rows, columns in folds(image_ids, caption_image_ids, protocol):
        ids = image_ids[rows], caption_image_ids[columns]
        parts.append(retrieval_metrics(scores[rows][:, columns], *ids))
    return mean_metrics(parts)


def ndcg(relevance: np.ndarray, order: np.ndarray, at: int = 25) -> float:
    """Normalised discounted cumulative gain of one query (Jarvelin & Kekalainen, TOIS 2002).

    Args:
      relevance: [T] graded relevance of the targets.
      order: [T] or [>= at] targets, best first.
      at: depth.

    Returns:
      DCG with gains 2^rel - 1 and discounts log2(position + 1), over that of the ideal order;
      0 where nothing is relevant.
    """
    discount = np.log2(np.arange(2, at + 2))

    def dcg(values: np.ndarray) -> float:
        top = np.ascontiguousarray(values[:at])
        # Gains in the precision of the relevances (float32 files), sums in float64.
        gains = np.power(values.dtype.type(2), top) - values.dtype.type(1)
        return float(np.sum(gains / discount[: len(top)]))

    ideal = dcg(np.sort(relevance)[::-1])
    return dcg(relevance[order[:at]]) / ideal if ideal > 0 else 0.0
