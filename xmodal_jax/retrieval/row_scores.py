"""Scores of stored rows with one query, as functions that `scan.Scan` maps over an index."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.scorers import pair_scorer
from xmodal_jax.ops.alignment import alignment_score, pooled_score
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval.scan import RowScorer, decoded

SIDES = ("images", "captions")
_TOKENS = ("tokens", "tokens_scale", "mask")
_POOLED = ("pooled", "pooled_scale")
CODES = ("codes", "codes_scale")
# What the score of a model of each kind reads.
ARRAYS = {"vector": _POOLED, "tokens": _TOKENS, "pair": _TOKENS + _POOLED}


def embeddings(block: Any, kind: str) -> Embeddings:
    """Stored rows as embeddings; what the kind does not read is of width 1."""
    rows = next(iter(block.values())).shape[0]
    tokens, mask, pooled = jnp.zeros((rows, 1, 1)), jnp.zeros((rows, 1), bool), jnp.zeros((rows, 1))
    if kind != "vector":
        tokens, mask = decoded(block, "tokens"), block["mask"]
    if kind != "tokens":
        pooled = decoded(block, "pooled")
    return Embeddings(tokens, mask, pooled)


def averages_words(model: nn.Module) -> bool:
    """Whether a model's score does not grow with the number of words of a caption."""
    mode, _ = getattr(model, "alignment", None) or ("", False)
    return mode in ("MrAVGw", "MrLSEw", "mean")


def model_scores(model: nn.Module, side: str) -> RowScorer:
    """The model's own score; the query is (parameters, embeddings of one item of the other side).

    Args:
      model: of any kind.
      side: what the rows are, images or captions.
    """

    def score(block: Any, query: tuple[Any, Embeddings]) -> jax.Array:
        params, asked = query
        pair = pair_scorer(model, params)
        turned = lambda row: pair(row, asked) if side == "images" else pair(asked, row)
        return jax.vmap(turned)(embeddings(block, model.kind))

    return score


def likeness(kind: str) -> RowScorer:
    """Of rows with an item of their own side; the query is (anything, embeddings of one item).

    With late interaction it is the mean over the query's vectors of the most similar vector of the
    row, otherwise the dot product of the pooled vectors.
    """

    def score(block: Any, query: tuple[Any, Embeddings]) -> jax.Array:
        rows, asked = embeddings(block, kind), query[1]
        if kind == "tokens":
            return jax.vmap(lambda row: alignment_score(row, asked, mode="MrAVGw"))(rows)
        return jax.vmap(lambda row: pooled_score(row, asked))(rows)

    return score


def code_scores(block: Any, query: jax.Array) -> jax.Array:
    """Dot products of stored codes with the code [M] of a query."""
    return (block["codes"].astype(jnp.float32) @ query) * block["codes_scale"][:, 0]
