"""A score matrix in parts: the queries of one direction, among the targets of one fold."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.metrics.placement import Placement
from xmodal_jax.metrics.ranking import folds, mean_metrics, placement, placement_metrics

SIDES = ("i2t", "t2i")
_CHECKED_AT_ONCE = 2**22  # scores


@dataclasses.dataclass(frozen=True)
class Part:
    """Scores [Q, T] of queries with targets; images are numbered 0 .. I - 1, captions 0 .. C - 1.

    side: "i2t", where the queries are images and the targets captions, or "t2i".
    fold: which part of the data this is; every query is in one.
    queries: [Q] and targets: [T] their numbers; query_ids: [Q] and target_ids: [T] image ids.
    """

    side: str
    fold: int
    queries: np.ndarray
    targets: np.ndarray
    query_ids: np.ndarray
    target_ids: np.ndarray
    scores: np.ndarray


def check_finite(part: Part) -> None:
    """Raises a UserError that names the first pair whose score is not finite, if there is any."""
    count, first = 0, None
    size = max(1, _CHECKED_AT_ONCE // max(1, part.scores.shape[1]))
    for start in range(0, len(part.scores), size):
        bad = np.argwhere(~np.isfinite(part.scores[start : start + size]))
        if len(bad) and first is None:
            first = int(bad[0, 0]) + start, int(bad[0, 1])
        count += len(bad)
    if first is None:
        return
    query, target = first
    turned = part.side == "t2i"
    caption = part.queries[query] if turned else part.targets[target]
    ids = part.query_ids[query], part.target_ids[target]
    image, owner = ids[::-1] if turned else ids
    raise UserError(
        f"{part.side} score of image {image} with caption {caption} (of image {owner}) is "
        f"{part.scores[first]}; {count} scores are not finite"
    )


def make_part(
    side: str,
    fold: int,
    images: tuple[np.ndarray, np.ndarray],
    captions: tuple[np.ndarray, np.ndarray],
    scores: np.ndarray,
) -> Part:
    """images, captions: numbers and image ids; scores: [Q, T] of that side."""
    (queries, query_ids), (targets, target_ids) = (
        (images, captions) if side == "i2t" else (captions, images)
    )
    return Part(side, fold, queries, targets, query_ids, target_ids, scores)


def parts_of(
    scores: np.ndarray, image_ids: np.ndarray, caption_image_ids: np.ndarray, protocol: str
) -> Iterator[Part]:
    """Both directions of every fold of a score matrix [I, C], as views where that is possible.

    Raises:
      UserError: an unknown protocol, or a number of images that five does not divide.
    """
    numbers = np.arange(len(image_ids)), np.arange(len(caption_image_ids))
    for fold, (rows, columns) in enumerate(folds(image_ids, caption_image_ids, protocol)):
        images = numbers[0][rows], image_ids[rows]
        captions = numbers[1][columns], caption_image_ids[columns]
        part = scores[rows][:, columns]
        yield make_part("i2t", fold, images, captions, part)
        yield make_part("t2i", fold, images, captions, part.T)


def metrics_of_parts(parts: Iterable[Part]) -> dict[str, float]:
    """Recalls, median and mean ranks of both directions and rsum: the means over the folds.

    Raises:
      UserError: a score is not finite, or a query has no positive; the message names it.
    """
    found: dict[int, dict[str, Placement]] = {}
    for part in parts:
        check_finite(part)
        first = placement(part.scores, part.query_ids, part.target_ids)
        found.setdefault(part.fold, {})[part.side] = first
    return mean_metrics([placement_metrics(sides["i2t"], sides["t2i"]) for sides in found.values()])
