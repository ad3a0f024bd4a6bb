"""A split encoded once: image and caption embeddings in blocks, with their ids."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from xmodal_jax import partitioning
from xmodal_jax.models.batch import IMAGE_FIELDS, TEXT_FIELDS
from xmodal_jax.ops.embeddings import Embeddings

Batches = Callable[[], Iterable[dict[str, np.ndarray]]]


@dataclasses.dataclass
class Encoded:
    """Blocks of embeddings of one size, on the devices; `valid` marks the rows that are no filler.

    rows: for each block the host arrays of its batch that say what the rows are.
    """

    blocks: list[Embeddings]
    rows: list[dict[str, np.ndarray]]

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
        return self._run(params, batches, "encode_image", IMAGE_FIELDS)

    def captions(self, params: Any, batches: Batches) -> Encoded:
        """Encodes every caption once."""
        return self._run(params, batches, "encode_text", TEXT_FIELDS)

    def _run(self, params: Any, batches: Batches, method: str, fields: tuple[str, ...]) -> Encoded:
        out = Encoded([], [])
        for batch in batches():
            chosen = {k: v for k, v in batch.items() if k in fields}
            inputs = partitioning.put_batch(chosen, self.mesh)
            out.blocks.append(self._encode(params, inputs, method=method))
            out.rows.append({k: v for k, v in batch.items() if k not in (*IMAGE_FIELDS, "tokens")})
        return out


def by_image_id(images: Encoded) -> tuple[Embeddings, dict[int, int]]:
    """All images in host arrays, and the row of each image id."""
    blocks = [partitioning.fetch(block) for block in images.blocks]
    every = jax.tree.map(lambda *x: np.concatenate(x), *blocks)
    ids = np.concatenate([row["image_id"] for row in images.rows])
    valid = np.concatenate([row["mask"] for row in images.rows])
    return every, {int(image): k for k, image in enumerate(ids) if valid[k]}
