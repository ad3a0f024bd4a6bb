"""Retrieval metrics of a split: every image and caption encoded once, every pair scored once."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from tqdm import tqdm

from xmodal_jax.evaluators.encoding import Batches, Encoded, Encoder
from xmodal_jax.ops.alignment import score_matrix
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval.metrics import protocol_metrics
from xmodal_jax.train_step import pair_scorer


class RetrievalEvaluator:
    """R@1/5/10, median and mean rank in both directions, and rsum."""

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        image_batches: Batches,
        caption_batches: Batches,
        *,
        protocol: str = "full",
        prefix: str = "",
        progress: bool = False,
    ) -> None:
        """Args: the batches of a split, a protocol of retrieval.metrics, a prefix of the names."""
        self._encoder = encoder
        self._image_batches, self._caption_batches = image_batches, caption_batches
        self._protocol, self._prefix, self._progress = protocol, prefix, progress

        @jax.jit
        def block_scores(params: Any, images: Embeddings, captions: Embeddings) -> jax.Array:
            return score_matrix(pair_scorer(model, params), images, captions)

        self._block_scores = block_scores

    def scores(self, params: Any, images: Encoded, captions: Encoded) -> np.ndarray:
        """Scores [I, C] of all images with all captions, block by block."""
        bar = tqdm(images.blocks, "scores", unit="block", leave=False, disable=not self._progress)
        rows = []
        for block, info in zip(bar, images.rows, strict=True):
            # Dispatched for all captions before the first is fetched: the devices never wait.
            parts = [self._block_scores(params, block, other) for other in captions.blocks]
            valid = zip(parts, captions.rows, strict=True)
            row = [np.asarray(part)[:, other["mask"]] for part, other in valid]
            rows.append(np.concatenate(row, axis=1)[info["mask"]])
        return np.concatenate(rows)

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        """Yields i2t/r1, ..., t2i/mean_rank, rsum."""
        images = self._encoder.images(params, self._image_batches)
        captions = self._encoder.captions(params, self._caption_batches)
        scores = self.scores(params, images, captions)
        found = protocol_metrics(scores, images.image_ids, captions.image_ids, self._protocol)
        for name, value in found.items():
            yield self._prefix + name, value
