"""How sure a figure is: intervals, paired tests, and several of them at once.

The captions of one image are no independent observations, so that images are what is drawn and
what is exchanged. A figure is a mean over queries; of every query its image is known, and of every
image the sum over its queries.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

SAMPLES = 2000
PERMUTATIONS, PER_TEST = 10_000, 40
_EXACT = 13  # images up to which all exchanges are gone through
_BLOCK = 250  # samples at once
_BLOCK_SIGNS = 2**22  # of samples that are drawn at once


@dataclasses.dataclass(frozen=True)
class Clustered:
    """Sums [I, M] of M figures over the queries of I images, and the queries [I, M] in each sum.

    fold: [I] which part of the data an image is ranked in; a figure is the mean of those of the
    folds, each of them a mean over its queries.
    """

    sums: np.ndarray
    counts: np.ndarray
    fold: np.ndarray

    def weights(self) -> np.ndarray:
        """[I, M] by which a sum enters its figure."""
        out = np.zeros(self.sums.shape)
        folds = np.unique(self.fold)
        for fold in folds:
            own = self.fold == fold
            out[own] = 1 / (len(folds) * np.maximum(self.counts[own].sum(axis=0), 1))
        return out

    def contributions(self) -> np.ndarray:
        """[I, M] what each image adds to each figure."""
        return self.sums * self.weights()

    def means(self) -> np.ndarray:
        """[M] the figures."""
        return self.contributions().sum(axis=0)


def clustered(
    values: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    fold: np.ndarray,
) -> Clustered:
    """Sums the values of queries by image.

    Args:
      values: M arrays [Q_m], each of one figure.
      images: M arrays [Q_m], the image 0 .. I - 1 of each query.
      fold: [I].
    """
    count = len(fold)
    sums = [np.bincount(own, v, count) for v, own in zip(values, images, strict=True)]
    counts = [np.bincount(own, minlength=count) for own in images]
    return Clustered(np.stack(sums, axis=1), np.stack(counts, axis=1).astype(float), fold)


def bootstrap(data: Clustered, *, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Figures [samples, M] of collections whose images are drawn with replacement from this one.

    All queries of an image are drawn together, each fold by itself. The 2.5th and 97.5th
    percentiles are a 95 % interval (Efron & Tibshirani, 1993).
    """
    rng = np.random.default_rng(seed)
    folds = np.unique(data.fold)
    out = np.zeros((samples, data.sums.shape[1]))
    for fold in folds:
        own = np.flatnonzero(data.fold == fold)
        sums, counts = data.sums[own], data.counts[own]
        for start in range(0, samples, _BLOCK):
            stop = min(start + _BLOCK, samples)
            drawn = rng.integers(0, len(own), (stop - start, len(own)))
            times = np.stack([np.bincount(row, minlength=len(own)) for row in drawn]).astype(float)
            # An empty draw of a figure that few images have counts as 0.
            out[start:stop] += (times @ sums) / np.maximum(times @ counts, 1) / len(folds)
    return out


def interval(drawn: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends [M] of the central share of drawn figures [samples, M]."""
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return low, high


def paired_tests(
    differences: np.ndarray, *, permutations: int | None = None, seed: int = 0
) -> np.ndarray:
    """Two-sided p-values [M] that two runs differ, by randomisation (Fisher; Smucker et al., 2007).

    Were the runs alike, the values of an image could as well be exchanged. The p-value is the share
    of such exchanges that make a difference at least as large; of few images all exchanges are gone
    through, of many some are drawn, and the given one is counted as one of them.

    Args:
      differences: [I, M] what each image adds to each difference: of figures, and of pairs of runs.
        All M are tested with the same exchanges.
      permutations: how many are drawn; by default 10,000, or 40 for each test if that is more.
        The smallest p-value is then below 1 / (40 M), of which a correction for M leaves 0.025.
      seed: of the draw.
    """
    # An image where both are equal changes nothing.
    differences = differences[np.any(differences != 0, axis=1)]
    count = len(differences)
    seen = np.abs(differences.sum(axis=0))
    # Sums in another order differ in the last bits, which must not break a tie.
    bound = seen - 1e-9 * np.abs(differences).sum(axis=0)
    if count <= _EXACT:
        signs = 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return np.mean(np.abs(signs @ differences) >= bound, axis=0)
    if permutations is None:
        permutations = max(PERMUTATIONS, PER_TEST * len(seen))
    rng = np.random.default_rng(seed)
    reached = np.zeros(len(seen))
    block = max(1, _BLOCK_SIGNS // count)
    for start in range(0, permutations, block):
        size = min(block, permutations - start)
        signs = 1.0 - 2.0 * rng.integers(0, 2, (size, count), dtype=np.int8)
        reached += np.sum(np.abs(signs @ differences) >= bound, axis=0)
    return (reached + 1) / (permutations + 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values [N] corrected for being N (Holm, 1979): the smallest times N, the next times N - 1.

    Where all of those below 0.05 are called significant, the chance that any is so by accident is
    below 0.05.
    """
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * (count - np.arange(count)))
    out = np.empty(count)
    out[order] = np.minimum(stepped, 1.0)
    return out
