"""A split encoded once, in blocks: all of them kept, or one after the other."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax import partitioning
from xmodal_jax.models.batch import IMAGE_FIELDS, TEXT_FIELDS
from xmodal_jax.ops.embeddings import Embeddings

Rows = dict[str, np.ndarray]
Batches = Callable[[], Iterable[Rows]]


@dataclasses.dataclass
class Encoded:
    """Blocks of embeddings of one size, on the devices; `valid` marks the rows that are no filler.

    rows: for each block the host arrays of its batch that say what the rows are.
    """

    blocks: list[Embeddings]
    rows: list[Rows]

    @property
    def image_ids(self) -> np.ndarray:
        """[N] image id of every row that is no filler."""
        return np.concatenate([row["image_id"][row["mask"]] for row in self.rows])

    def on_host(self) -> Embeddings:
        """Every row that is no filler, as numpy arrays."""
        parts = [
            jax.tree.map(lambda x, valid=rows["mask"]: x[valid], partitioning.fetch(block))
            for block, rows in zip(self.blocks, self.rows, strict=True)
        ]
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)


class Encoder:
    """Encodes batches of one model on one mesh; compiled once."""

    def __init__(self, model: nn.Module, mesh: jax.sharding.Mesh) -> None:
        """model: any with encode_image and encode_text."""
        self.mesh = mesh

        @partial(jax.jit, static_argnames="method")
        def encode(params: Any, batch: dict[str, jax.Array], method: str) -> Embeddings:
            return model.apply({"params": params}, batch, method=method)

        self._encode = encode

    def images(self, params: Any, batches: Batches) -> Encoded:
        """Encodes every image once."""
        return _kept(self.image_blocks(params, batches))

    def captions(self, params: Any, batches: Batches) -> Encoded:
        """Encodes every caption once."""
        return _kept(self.caption_blocks(params, batches))

    def image_blocks(self, params: Any, batches: Batches) -> Iterator[tuple[Embeddings, Rows]]:
        """The blocks of `images` one by one, each with what its rows are."""
        return self._run(params, batches, "encode_image", IMAGE_FIELDS)

    def caption_blocks(self, params: Any, batches: Batches) -> Iterator[tuple[Embeddings, Rows]]:
        """The blocks of `captions` one by one, each with what its rows are."""
        return self._run(params, batches, "encode_text", TEXT_FIELDS)

    def _run(
        self, params: Any, batches: Batches, method: str, fields: tuple[str, ...]
    ) -> Iterator[tuple[Embeddings, Rows]]:
        ahead = None
        for batch in batches():
            chosen = {k: v for k, v in batch.items() if k in fields}
            inputs = partitioning.put_batch(chosen, self.mesh)
            block = self._encode(params, inputs, method=method)
            rows = {k: v for k, v in batch.items() if k not in (*IMAGE_FIELDS, "tokens")}
            # One block ahead: the devices encode while the caller works on the one before.
            if ahead is not None:
                yield ahead
            ahead = block, rows
        if ahead is not None:
            yield ahead


def _kept(blocks: Iterable[tuple[Embeddings, Rows]]) -> Encoded:
    out = Encoded([], [])
    for block, rows in blocks:
        out.blocks.append(block)
        out.rows.append(rows)
    return out


@jax.jit
def pair_similarities(images: Embeddings, captions: Embeddings) -> jax.Array:
    """Row i of both is a pair -> [B, R, W], -inf for a region that is padding.

    Accumulated and kept in float32 at least: bfloat16 would make regions equal that are not.
    """
    wide = jnp.promote_types(images.tokens.dtype, jnp.float32)
    pair = "brd,bwd->brw"
    sim = jnp.einsum(pair, images.tokens, captions.tokens, preferred_element_type=wide)
    return jnp.where(images.mask[:, :, None], sim, -jnp.inf)


def by_image_id(images: Encoded) -> tuple[Embeddings, dict[int, int]]:
    """All images in host arrays, and the row of each image id."""
    blocks = [partitioning.fetch(block) for block in images.blocks]
    every = jax.tree.map(lambda *x: np.concatenate(x), *blocks)
    ids = np.concatenate([row["image_id"] for row in images.rows])
    valid = np.concatenate([row["mask"] for row in images.rows])
    return every, {int(image): k for k, image in enumerate(ids) if valid[k]}
