"""What a ranking does beside being right: targets that are always found, and long captions."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Hubness:
    """How often targets are among the best k of a query.

    occurrences: [T]; skewness: of these (Radovanovic et al., JMLR 2010), 0 where all are found
    alike; never: percentage of targets no query finds; hubs: targets found most often, first first.
    """

    occurrences: np.ndarray
    skewness: float
    never: float
    hubs: np.ndarray


def hubness(top: np.ndarray, targets: int, hubs: int = 10) -> Hubness:
    """top: [Q, k] the best targets of each query; targets: T."""
    occurrences = np.bincount(top.ravel(), minlength=targets)
    centred = occurrences - occurrences.mean()
    spread = np.sqrt(np.mean(centred**2))
    skewness = float(np.mean(centred**3) / spread**3) if spread > 0 else 0.0
    most = np.argsort(-occurrences, kind="stable")[:hubs]
    return Hubness(occurrences, skewness, float(100 * np.mean(occurrences == 0)), most)


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation of two arrays [N]; 0 where either of them is constant."""
    a, b = (ranks - ranks.mean() for ranks in (_mean_ranks(x), _mean_ranks(y)))
    scale = np.sqrt(np.sum(a**2) * np.sum(b**2))
    return float(np.sum(a * b) / scale) if scale > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class LengthBias:
    """Whether captions are found, and find, by their length in words.

    found: rank correlation of a caption's words with how many images have it among their best.
    finds: the same with the reciprocal rank of its image.
    edges: [B + 1] lengths from each to below the next; recall: [B] R@1 in percent of the captions
    of such lengths; counts: [B] how many they are.
    """

    found: float
    finds: float
    edges: np.ndarray
    recall: np.ndarray
    counts: np.ndarray


def length_bias(
    lengths: np.ndarray,
    occurrences: np.ndarray,
    reciprocal: np.ndarray,
    recall: np.ndarray,
    bins: int = 5,
) -> LengthBias:
    """Of C captions by their lengths.

    Args:
      lengths: [C] in words.
      occurrences: [C] how many images have it among their best.
      reciprocal: [C] reciprocal rank of its image, in any unit.
      recall: [C] R@1 of its image, 0 to 100.
      bins: groups of captions, of which those of one length are in one.
    """
    quantiles = np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1], method="higher")
    edges = np.unique(np.concatenate([[lengths.min()], quantiles, [lengths.max() + 1]]))
    place = np.searchsorted(edges, lengths, side="right") - 1
    counts = np.bincount(place, minlength=len(edges) - 1)
    sums = np.bincount(place, recall, minlength=len(edges) - 1)
    return LengthBias(
        rank_correlation(lengths, occurrences),
        rank_correlation(lengths, reciprocal),
        edges,
        sums / np.maximum(counts, 1),
        counts,
    )
