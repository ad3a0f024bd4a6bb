"""Where the first right target of a query stands.

Equal scores have no order: what depends on one is its mean over all orders of the equal targets, in
closed form (McSherry & Najork, ECIR 2008).
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Placement:
    """Of Q queries, the right targets with the highest score of a right one; [Q] each.

    above: targets with a higher score; tied: targets of that score, right or not; right: those of
    them that are right, 1 or more.
    """

    above: np.ndarray
    tied: np.ndarray
    right: np.ndarray

    @classmethod
    def of_order(cls, ranks: np.ndarray) -> "Placement":
        """ranks: [Q] 0-based, of targets in a given order."""
        ones = np.ones(len(ranks), np.int64)
        return cls(ranks, ones, ones)

    def rank(self) -> np.ndarray:
        """[Q] expected 0-based rank: of w wrong and m right ones, w / (m + 1) precede the first."""
        return self.above + (self.tied - self.right) / (self.right + 1)

    def recall(self, k: int) -> np.ndarray:
        """[Q] the share of all orders in which a right target is among the first k."""
        places = np.clip(k - self.above, 0, self.tied)  # of the equal ones, among the first k
        missed = np.ones(len(places))
        for place in range(int(places.max(initial=0))):
            wrong = np.maximum(self.tied - self.right - place, 0)
            missed *= np.where(place < places, wrong / np.maximum(self.tied - place, 1), 1.0)
        return 1 - missed

    def reciprocal_rank(self) -> np.ndarray:
        """[Q] the mean over all orders of 1 / rank, ranks from 1."""
        out = 1 / (self.above + 1)
        among = np.flatnonzero(self.tied > self.right)
        cases = np.stack([self.above, self.tied, self.right], axis=1)[among]
        cases, which = np.unique(cases, axis=0, return_inverse=True)
        found = np.array([_reciprocal(*case) for case in cases.tolist()])
        if len(among):
            out[among] = found[which.reshape(-1)]
        return out


def _reciprocal(above: int, tied: int, right: int) -> float:
    """Mean of 1 / rank of the first right one."""
    before = np.arange(tied - right + 1)  # wrong ones of that score that precede it
    shares = (tied - right - before[:-1]) / (tied - before[:-1])
    only_wrong = np.concatenate([[1.0], np.cumprod(shares)])  # chance that so many come first
    return float(np.sum(only_wrong * right / (tied - before) / (above + before + 1)))
