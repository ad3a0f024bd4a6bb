"""Shapes of a batch: what the input pipeline yields and what models are initialised from."""

from typing import Any

import jax
import jax.numpy as jnp

IMAGE_FIELDS = (
    *("regions", "boxes", "region_mask", "object_labels"),
    *("relations", "relation_scores", "relation_mask"),
)
TEXT_FIELDS = ("tokens", "token_mask")


def encoder_spec(
    batch_size: int, regions: int, feature_width: int, tokens: int, relations: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """The part of a batch that the encoders read; scene graphs only with `relations` > 0."""
    graph = {
        "relations": ((batch_size, relations, 3), jnp.int32),
        "relation_scores": ((batch_size, relations), jnp.float32),
        "relation_mask": ((batch_size, relations), jnp.bool_),
    }
    shapes = {
        "regions": ((batch_size, regions, feature_width), jnp.float16),
        "boxes": ((batch_size, regions, 4), jnp.float32),
        "region_mask": ((batch_size, regions), jnp.bool_),
        "object_labels": ((batch_size, regions), jnp.int32),
        "tokens": ((batch_size, tokens), jnp.int32),
        "token_mask": ((batch_size, tokens), jnp.bool_),
    }
    shapes |= graph if relations else {}
    return {name: jax.ShapeDtypeStruct(*spec) for name, spec in shapes.items()}


def batch_spec(config: Any, feature_width: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape and type of each array of a training batch (over all processes).

    Args:
      config: the whole configuration.
      feature_width: width F of the region features in the data.
    """
    b, data = config.train.batch_size, config.data
    row = {"image_id": jnp.int32, "caption_id": jnp.int32, "mask": jnp.bool_}
    encoders = encoder_spec(b, data.max_regions, feature_width, data.max_tokens, data.max_relations)
    return encoders | {name: jax.ShapeDtypeStruct((b,), dtype) for name, dtype in row.items()}
