"""The figures that TERAN's own evaluation prints, quirks included, beside the honest ones.

Equal scores are ordered as numpy's unstable sort leaves them, from the back, so that a tie is won
or lost by chance; and the NDCG of images is a mean over those above 0 only, that of captions over
all. Use it to compare with published NDCG, and for nothing else.
"""

from collections.abc import Mapping

import numpy as np

from xmodal_jax.metrics.graded import ndcg
from xmodal_jax.metrics.judgements import Judgements
from xmodal_jax.metrics.ranking import RECALL_AT, summary


def parity_metrics(
    i2t: np.ndarray,
    t2i: np.ndarray,
    judgements: Mapping[str, Judgements],
    relevances: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Recalls, ranks, NDCG and rsum of both directions as the reference computes them.

    Args:
      i2t: [I, C] scores; t2i: [C, I].
      judgements: "i2t" and "t2i".
      relevances: [C, I] by name.
    """
    out: dict[str, float] = {}
    for side, scores in (("i2t", i2t), ("t2i", t2i)):
        ranks = np.empty(len(scores))
        values = {name: np.empty(len(scores)) for name in relevances}
        for query, positives, _ in judgements[side]:
            order = np.argsort(np.ascontiguousarray(scores[query]))[::-1]
            ranks[query] = np.flatnonzero(np.isin(order, positives))[0]
            for name, relevance in relevances.items():
                own = relevance[:, query] if side == "i2t" else relevance[query]
                values[name][query] = ndcg(np.ascontiguousarray(own), order)
        out |= {f"{side}/{name}": value for name, value in summary(ranks).items()}
        for name, found in values.items():
            counted = found[found != 0] if side == "i2t" else found
            out[f"{side}/ndcg_{name}"] = float(np.mean(counted)) if len(counted) else 0.0
    out["rsum"] = sum(out[f"{side}/r{k}"] for side in ("i2t", "t2i") for k in RECALL_AT)
    return out
