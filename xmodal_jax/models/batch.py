"""Shapes of a batch: what the input pipeline yields and what models are initialised from."""

from typing import Any

import jax
import jax.numpy as jnp


def batch_spec(config: Any, feature_width: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape and type of each array of a training batch (over all processes).

    Args:
      config: the whole configuration.
      feature_width: width F of the region features in the data.
    """
    b, r, w = config.train.batch_size, config.data.max_regions, config.data.max_tokens
    shapes = {
        "regions": ((b, r, feature_width), jnp.float16),
        "boxes": ((b, r, 4), jnp.float32),
        "region_mask": ((b, r), jnp.bool_),
        "object_labels": ((b, r), jnp.int32),
        "tokens": ((b, w), jnp.int32),
        "token_mask": ((b, w), jnp.bool_),
        "image_id": ((b,), jnp.int32),
        "caption_id": ((b,), jnp.int32),
        "mask": ((b,), jnp.bool_),
    }
    return {name: jax.ShapeDtypeStruct(*spec) for name, spec in shapes.items()}
