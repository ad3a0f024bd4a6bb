"""Augmentation of a training batch inside the train step (Chen et al., VSE-infinity, CVPR 2021)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]


def drop_regions(key: jax.Array, batch: Batch, rate: float) -> dict[str, jax.Array]:
    """Hides a share of the regions [B, R] from the image; the first region always stays."""
    mask = batch["region_mask"]
    keep = jax.random.bernoulli(key, 1 - rate, mask.shape).at[:, 0].set(True)
    return {**batch, "region_mask": mask & keep}


def mask_tokens(key: jax.Array, batch: Batch, rate: float, mask_id: int) -> dict[str, jax.Array]:
    """Replaces a share of the words in tokens [B, W] by `mask_id`; never [CLS] or [SEP]."""
    tokens, mask = batch["tokens"], batch["token_mask"]
    index = jnp.arange(tokens.shape[1])[None, :]
    words = (index > 0) & (index < jnp.sum(mask, 1, keepdims=True) - 1)
    chosen = jax.random.bernoulli(key, rate, tokens.shape) & words
    return {**batch, "tokens": jnp.where(chosen, mask_id, tokens)}


def augment(
    key: jax.Array, batch: Batch, *, region_dropout: float, token_masking: float, mask_id: int
) -> dict[str, jax.Array]:
    """Both of the above; a rate of 0 leaves its side as it is."""
    regions, tokens = jax.random.split(key)
    out = dict(batch)
    if region_dropout > 0:
        out = drop_regions(regions, out, region_dropout)
    if token_masking > 0:
        out = mask_tokens(tokens, out, token_masking, mask_id)
    return out
