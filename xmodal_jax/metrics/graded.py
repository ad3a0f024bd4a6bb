"""Graded relevance: NDCG, and the file format in which the reference keeps relevances.

Jarvelin & Kekalainen, TOIS 2002; the evaluation of TERN and TERAN cuts it at 25.
"""

from pathlib import Path

import numpy as np

from xmodal_jax.errors import UserError

NDCG_AT = 25


def discounts(count: int) -> np.ndarray:
    """[count] log2(position + 1), positions from 1."""
    return np.log2(np.arange(2, count + 2))


def gains(relevance: np.ndarray) -> np.ndarray:
    """2^rel - 1 in the precision of the relevances, as the reference computes it of its files."""
    one = relevance.dtype.type(1)
    return np.power(relevance.dtype.type(2), np.ascontiguousarray(relevance)) - one


def ndcg(relevance: np.ndarray, order: np.ndarray, at: int = NDCG_AT) -> float:
    """NDCG of one query whose targets have an order.

    Args:
      relevance: [T] graded relevance of the targets.
      order: [T] or [>= at] targets, best first.
      at: depth.

    Returns:
      DCG over that of the ideal order; 0 where nothing is relevant.
    """

    def dcg(values: np.ndarray) -> float:
        top = values[:at]
        return float(np.sum(gains(top) / discounts(len(top))))

    ideal = dcg(np.sort(relevance)[::-1])
    return dcg(relevance[order[:at]]) / ideal if ideal > 0 else 0.0


def ideal_dcg(relevance: np.ndarray, at: int = NDCG_AT) -> np.ndarray:
    """[Q] the highest DCG that each row of relevances [Q, T] allows."""
    at = min(at, relevance.shape[1])
    best = -np.partition(-relevance, at - 1, axis=1)[:, :at]
    return (gains(np.sort(best, axis=1)[:, ::-1]) / discounts(at)).sum(axis=1)


def expected_dcg(
    scores: np.ndarray, relevance: np.ndarray, lowest: float, at: int = NDCG_AT
) -> float:
    """DCG of one query, its mean over all orders of equal scores.

    Args:
      scores: [T]; relevance: [T].
      lowest: the at-th highest score.
      at: depth.
    """
    top = np.flatnonzero(scores >= lowest)
    values, group = np.unique(-scores[top], return_inverse=True)
    gain = gains(relevance[top]).astype(np.float64)
    if len(values) == len(top):  # no equal ones
        placed = np.empty(len(top))
        placed[group] = gain
    else:
        sizes = np.bincount(group)
        placed = np.repeat(np.bincount(group, weights=gain) / sizes, sizes)
    placed = placed[:at]
    return float(np.sum(placed / discounts(len(placed))))


def read_relevance(path: Path, captions: int, images: int) -> np.ndarray:
    """Relevances [C, I] of a file of the reference, `{name}-{split}-{rougeL,spice}.npy`.

    In spite of their ending these are bare float32 values, row by row; a true .npy file of that
    shape is read as well. The whole file is not held: it is mapped.

    Raises:
      UserError: the size is another one, or a relevance was not computed yet (-1).
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; give the relevances of this split, or leave them out")
    with path.open("rb") as file:
        has_header = file.read(6) == b"\x93NUMPY"
    try:
        if has_header:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            found = np.memmap(path, np.float32, mode="r")
            if found.size == captions * images:
                found = found.reshape(captions, images)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is no file of relevances ({error}); copy it again") from error
    if found.shape != (captions, images):
        raise UserError(
            f"{path} holds {found.size:,} relevances, not {captions:,} captions x {images:,} "
            "images; give the file of this split"
        )
    for start in range(0, captions, 1000):
        bad = np.argwhere(~(found[start : start + 1000] >= 0))
        if len(bad):
            row, column = bad[0] + [start, 0]
            raise UserError(
                f"{path} has {found[row, column]} for caption {row} and image {column}; finish "
                "computing it"
            )
    return found
