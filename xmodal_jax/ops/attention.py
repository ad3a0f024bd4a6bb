"""Attention between the parts of one image and the parts of one caption.

All functions take ONE pair, without batch axes, and are vmapped by `alignment.score_matrix`. What
depends on one side alone (projections, Gram matrices) is then computed once for each item and not
for each pair, because vmap leaves it unbatched over the other side.
"""

import jax
import jax.numpy as jnp

from xmodal_jax.ops.embeddings import dot_products, l2_normalize, without_padding

_SLOPE = 0.1  # of the leaky ReLU before the normalisation (Lee et al., ECCV 2018)


def attention_weights(
    queries: jax.Array,
    query_mask: jax.Array,
    contexts: jax.Array,
    context_mask: jax.Array,
    smooth: float,
) -> jax.Array:
    """Weights [N, M] of the contexts for each query (SCAN, Lee et al., ECCV 2018, eq. 1 and 4).

    e = leaky_relu(queries @ contexts.T), each column scaled to unit length over the valid queries;
    a row of weights is softmax(smooth * e) over the valid contexts and sums to 1.

    Args:
      queries: [N, D], query_mask [N]; contexts: [M, D], context_mask [M].
      smooth: inverse temperature, called lambda in the papers.

    Returns:
      At least float32. Rows of masked queries are uniform, rows without any context are 0.
    """
    queries = without_padding(queries, query_mask)
    contexts = without_padding(contexts, context_mask)
    similar = dot_products(queries, contexts)
    logits = smooth * l2_normalize(jax.nn.leaky_relu(similar, _SLOPE).T).T
    # A finite floor: a caption without any word gives zeros and no NaN.
    logits = jnp.where(context_mask[None, :], logits, -1e9)
    return jax.nn.softmax(logits, axis=1) * context_mask[None, :].astype(similar.dtype)


def attended_cosines(
    queries: jax.Array,
    query_mask: jax.Array,
    contexts: jax.Array,
    context_mask: jax.Array,
    smooth: float,
) -> jax.Array:
    """Cosine [N] of each unit query with its attended context (SCAN, eq. 3 and 5 to 7).

    The attended vectors [N, D] are never formed: with A the weights and S the dot products, the
    numerator is sum_m A S and the squared norm of the context A G A^T, G = contexts @ contexts.T,
    so that a pair holds [N, M] numbers only. Masked queries get 0.
    """
    weights = attention_weights(queries, query_mask, contexts, context_mask, smooth)
    queries = without_padding(queries, query_mask)
    contexts = without_padding(contexts, context_mask)
    squared = jnp.sum((weights @ dot_products(contexts, contexts)) * weights, axis=1)
    numerator = jnp.sum(weights * dot_products(queries, contexts), axis=1)
    safe = squared > 1e-12
    norm = jnp.sqrt(jnp.where(safe, squared, 1.0))
    return jnp.where(safe, numerator / norm, 0.0)


def pool_fragments(values: jax.Array, mask: jax.Array, sharpness: float) -> jax.Array:
    """One number from values [N] with mask [N]: the mean, or with sharpness l > 0 SCAN's

    LogSumExp pooling log(sum exp(l x)) / l (eq. 9). 0 where nothing is valid.
    """
    count = jnp.maximum(jnp.sum(mask), 1)
    if sharpness <= 0:
        return jnp.sum(jnp.where(mask, values, 0.0)) / count
    pooled = jax.nn.logsumexp(jnp.where(mask, sharpness * values, -1e9)) / sharpness
    return jnp.where(jnp.any(mask), pooled, 0.0)


def unit_over_items(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x [N, D] with each column scaled to unit length over the valid items; masked rows 0."""
    return l2_normalize(without_padding(x, mask).T).T
