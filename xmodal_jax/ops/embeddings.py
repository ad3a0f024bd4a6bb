"""What an encoder returns for images and for captions alike."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Embeddings:
    """Encoded images or captions; one pytree that shards, vmaps, saves and indexes as one thing.

    Attributes:
      tokens: [B, N, D] one vector for each region or word that takes part in the score.
      mask: [B, N] bool, False on padding and special tokens.
      pooled: [B, D] one unit vector for the whole item.
    """

    tokens: jax.Array
    mask: jax.Array
    pooled: jax.Array


def without_padding(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x [..., N, D] with zeros where mask [..., N] is False.

    To be called before any product: 0 * NaN is NaN, also in the gradients of what is shared with
    the valid rows.
    """
    return jnp.where(mask[..., None], x, 0)


def l2_normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Returns x / max(||x||, epsilon) over the last axis, with finite gradients at x = 0.

    The norm is taken in float32 at least, so that bfloat16 vectors come out as unit ones.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    tiny = squared <= epsilon * epsilon
    norm = jnp.where(tiny, epsilon, jnp.sqrt(jnp.where(tiny, 1.0, squared)))
    return (wide / norm).astype(x.dtype)


def dot_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Dot products [N, M] of the rows of x [N, D] and y [M, D], accumulated in float32 at least."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum("nd,md->nm", x, y, preferred_element_type=dtype)
