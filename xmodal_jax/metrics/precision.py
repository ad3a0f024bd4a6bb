"""Where all right targets of a query stand, and the precisions that follow from that.

Equal scores have no order: mAP@R and R-precision are means over all orders of the equal targets, in
closed form, as the figures of `placement` are.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Standing:
    """Of the P positives of one query, best first.

    above: [P] targets with a higher score; tied: [P] targets of the same score, itself included.
    listed: R, how many positives the query has; more than P where some are in no list of targets.
    """

    above: np.ndarray
    tied: np.ndarray
    listed: int

    @classmethod
    def of(cls, ordered: np.ndarray, scores: np.ndarray, listed: int) -> "Standing":
        """ordered: [T] the scores of all targets, ascending; scores: [P] of the positives."""
        scores = np.sort(scores)[::-1]
        right = np.searchsorted(ordered, scores, side="right")
        left = np.searchsorted(ordered, scores, side="left")
        return cls(len(ordered) - right, right - left, listed)

    def first(self) -> tuple[int, int, int]:
        """The fields of a `Placement`: targets above, of the same score, and the right of these."""
        right = int(np.count_nonzero(self.above == self.above[0]))
        return int(self.above[0]), int(self.tied[0]), right

    def _groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """[G] of each set of equal scores with positives: above, size, positives, those before."""
        above, first, own = np.unique(self.above, return_index=True, return_counts=True)
        return above, self.tied[first], own, np.cumsum(own) - own

    def r_precision(self) -> float:
        """Share of positives among the first R."""
        count = self.listed
        if self.tied.max() == 1:
            return float(np.count_nonzero(self.above < count) / count)
        above, size, own, _ = self._groups()
        return float(np.sum(own * np.clip(count - above, 0, size) / size) / count)

    def average_precision_at_r(self) -> float:
        """mAP@R (Musgrave et al., ECCV 2020): the precisions at the positives among the first R.

        Their sum is divided by R, however many positives are among the first R.
        """
        count = self.listed
        if self.tied.max() == 1:
            found = self.above < count
            return float(
                np.sum((np.arange(len(found)) + 1)[found] / (self.above[found] + 1)) / count
            )
        total = 0.0
        for start, size, own, before in zip(*self._groups(), strict=True):
            place = np.arange(1, max(0, min(size, count - start)) + 1)
            # Of the other own - 1 positives, so many stand before this place on average.
            others = (place - 1) * (own - 1) / max(size - 1, 1)
            total += np.sum(own / size * (before + 1 + others) / (start + place))
        return float(total / count)
