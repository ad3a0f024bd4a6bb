"""The figures that TERAN's own evaluation prints, quirks included, beside the honest ones.

Equal scores are ordered as numpy's unstable sort leaves them, from the back, so that a tie is won
or lost by chance; and the NDCG of images is a mean over those above 0 only, that of captions over
all. Use it to compare with published NDCG, and for nothing else.
"""

from collections.abc import Mapping

import numpy as np

from xmodal_jax.metrics.graded import ndcg
from xmodal_jax.metrics.judgements import Judgements
from xmodal_jax.metrics.placement import Placement
from xmodal_jax.metrics.ranking import summary


def parity_metrics(
    side: str,
    scores: np.ndarray,
    judgements: Judgements,
    relevances: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Recalls, ranks and NDCG (0..1) of one direction as the reference computes them.

    Args:
      side: "i2t" or "t2i".
      scores: [Q, T] of that direction.
      judgements: of every query.
      relevances: [Q, T] by name.
    """
    ranks = np.empty(len(scores), np.int64)
    values = {name: np.empty(len(scores)) for name in relevances}
    for query, positives, _ in judgements:
        order = np.argsort(np.ascontiguousarray(scores[query]))[::-1]
        ranks[query] = np.flatnonzero(np.isin(order, positives))[0]
        for name, relevance in relevances.items():
            values[name][query] = ndcg(np.ascontiguousarray(relevance[query]), order)
    out = {f"{side}/{name}": value for name, value in summary(Placement.of_order(ranks)).items()}
    for name, found in values.items():
        counted = found[found != 0] if side == "i2t" else found
        out[f"{side}/ndcg_{name}"] = float(np.mean(counted)) if len(counted) else 0.0
    return out
