"""Similarities of the family: Linen modules from one image and one caption to a score.

Each has a `kind`: "vector" and "tokens" need what can be computed before the two meet, "pair" needs
both together. None has batch axes; `ops.alignment.score_matrix` maps them over all pairs.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.errors import UserError
from xmodal_jax.models.layers import Dtype
from xmodal_jax.ops.alignment import alignment_score, pooled_score
from xmodal_jax.ops.attention import attended_cosines, attention_weights, pool_fragments
from xmodal_jax.ops.embeddings import Embeddings, l2_normalize, without_padding


class DotSimilarity(nn.Module):
    """Dot product of the pooled vectors (VSE++, VSE-infinity, VSRN)."""

    dtype: Dtype = jnp.float32

    kind = "vector"

    def __call__(self, image: Embeddings, caption: Embeddings) -> jax.Array:
        return pooled_score(image, caption)


class AlignmentSimilarity(nn.Module):
    """Late interaction: the maxima of the region-word similarities (TERAN, CHAN)."""

    mode: str = "MrAVGw"
    dtype: Dtype = jnp.float32

    kind = "tokens"

    def __call__(self, image: Embeddings, caption: Embeddings) -> jax.Array:
        return alignment_score(image, caption, mode=self.mode)


class CrossAttentionSimilarity(nn.Module):
    """SCAN: Stacked Cross Attention (Lee et al., ECCV 2018).

    direction t2i: each word against the regions it attends to; i2t: each region against the words.
    The cosines are averaged, or pooled by LogSumExp with `sharpness` > 0.
    """

    direction: str = "t2i"
    smooth: float = 9.0  # inverse temperature of the attention; published: t2i 9, i2t 4
    sharpness: float = 0.0
    dtype: Dtype = jnp.float32

    kind = "pair"

    def __call__(self, image: Embeddings, caption: Embeddings) -> jax.Array:
        if self.direction not in ("t2i", "i2t"):
            raise UserError(f"model.similarity.direction={self.direction!r} is not one of t2i, i2t")
        query, context = (caption, image) if self.direction == "t2i" else (image, caption)
        cosines = attended_cosines(
            query.tokens, query.mask, context.tokens, context.mask, self.smooth
        )
        return pool_fragments(cosines, query.mask, self.sharpness)


class SimilarityVectors(nn.Module):
    """SGRAF's similarity vectors unit(W (x - y)^2): one of the pooled vectors, then one a word.

    Diao et al., AAAI 2021, eq. 2 and 4; y are the regions that a word x attends to.
    """

    width: int
    smooth: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Embeddings, caption: Embeddings) -> tuple[jax.Array, jax.Array]:
        """-> [1 + W, width], mask [1 + W]."""
        weights = attention_weights(
            caption.tokens, caption.mask, image.tokens, image.mask, self.smooth
        ).astype(self.dtype)
        attended = l2_normalize(weights @ without_padding(image.tokens, image.mask))
        words = without_padding(caption.tokens, caption.mask)
        local = nn.Dense(self.width, dtype=self.dtype, name="local")(jnp.square(words - attended))
        whole = nn.Dense(self.width, dtype=self.dtype, name="global")(
            jnp.square(image.pooled - caption.pooled)[None, :]
        )
        vectors = l2_normalize(jnp.concatenate([whole, local]))
        return vectors, jnp.concatenate([jnp.ones(1, bool), caption.mask])


class SgrSimilarity(nn.Module):
    """SGR of SGRAF: the similarity vectors reason as a complete graph; its global node answers."""

    width: int = 256
    smooth: float = 9.0
    num_steps: int = 3
    dtype: Dtype = jnp.float32

    kind = "pair"

    @nn.compact
    def __call__(self, image: Embeddings, caption: Embeddings) -> jax.Array:
        x, mask = SimilarityVectors(self.width, self.smooth, self.dtype, name="vectors")(
            image, caption
        )
        for i in range(self.num_steps):
            dense = lambda name, i=i: nn.Dense(self.width, dtype=self.dtype, name=f"{name}_{i}")
            logits = dense("query")(x) @ dense("key")(x).T
            edges = jax.nn.softmax(jnp.where(mask[None, :], logits, -1e9), axis=1)
            x = jax.nn.relu(dense("node")(edges @ x))
        return _probability(x[0], self.dtype)


class SafSimilarity(nn.Module):
    """SAF of SGRAF: the similarity vectors weighted by sigmoid gates, then pooled.

    The published batch normalisation of the gates is left out: in the space of pairs it would make
    a score depend on the other pairs of the batch.
    """

    width: int = 256
    smooth: float = 9.0
    dtype: Dtype = jnp.float32

    kind = "pair"

    @nn.compact
    def __call__(self, image: Embeddings, caption: Embeddings) -> jax.Array:
        x, mask = SimilarityVectors(self.width, self.smooth, self.dtype, name="vectors")(
            image, caption
        )
        gates = jax.nn.sigmoid(nn.Dense(1, dtype=self.dtype, name="gate")(x)[:, 0]) * mask
        gates = (gates / (jnp.sum(gates) + 1e-8)).astype(x.dtype)
        return _probability(l2_normalize(gates @ x), self.dtype)


def _probability(vector: jax.Array, dtype: Dtype) -> jax.Array:
    score = nn.Dense(1, dtype=dtype, name="score")(vector)[0]
    return jax.nn.sigmoid(score.astype(jnp.promote_types(score.dtype, jnp.float32)))
