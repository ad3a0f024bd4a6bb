"""Retrieval metrics of a split: every image and caption encoded once, every pair scored once."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from tqdm import tqdm

from xmodal_jax import partitioning
from xmodal_jax.errors import UserError
from xmodal_jax.evaluators.encoding import Batches, Encoded, Encoder
from xmodal_jax.metrics.parts import Part, metrics_of_parts, parts_of
from xmodal_jax.models.scorers import pair_scorer
from xmodal_jax.ops import packing
from xmodal_jax.ops.alignment import pooled_score, score_matrix
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.ops.packing import PackedCaptions

SCORES = ("model", "pooled")


def check_scoring(score: str, rerank_top_k: int, kind: str) -> None:
    """Raises a UserError unless `evaluate.score` and `evaluate.rerank_top_k` fit a model's kind."""
    if score not in SCORES:
        raise UserError(f"evaluate.score={score!r} is not known; use {' or '.join(SCORES)}")
    if rerank_top_k < 0:
        raise UserError(f"evaluate.rerank_top_k={rerank_top_k}; give 0 to score every pair, or k")
    if rerank_top_k and score == "pooled":
        raise UserError(
            f"evaluate.rerank_top_k={rerank_top_k} has no effect with evaluate.score='pooled', "
            "which is the first stage alone; set the one to 0 or the other to 'model'"
        )
    if rerank_top_k and kind != "pair":
        raise UserError(
            f"evaluate.rerank_top_k={rerank_top_k}: a model of kind {kind!r} is scored exactly; "
            "set it to 0"
        )


@dataclasses.dataclass(frozen=True)
class ScoredSplit:
    """Scores [I, C] of all images with all captions of a split, and the image ids of both."""

    scores: np.ndarray
    image_ids: np.ndarray
    caption_image_ids: np.ndarray


def _as_they_are(captions: Encoded) -> Iterator[tuple[Embeddings, np.ndarray]]:
    """Blocks as they were encoded, and which of their columns are captions."""
    for block, rows in zip(captions.blocks, captions.rows, strict=True):
        yield block, rows["mask"]


class RetrievalEvaluator:
    """R@1/5/10, median and mean rank in both directions, and rsum."""

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        image_batches: Batches,
        caption_batches: Batches,
        *,
        score: str = "model",
        protocol: str = "full",
        prefix: str = "",
        progress: bool = False,
        alignment: tuple[str, bool] | None = None,
    ) -> None:
        """Args: the batches of a split, a protocol of metrics.ranking, a prefix of the names.

        score: "model", the model's own; "pooled", the dot product of the pooled vectors.
        alignment: the model's; with it captions are packed where their score allows that.
        """
        self._encoder = encoder
        self._image_batches, self._caption_batches = image_batches, caption_batches
        self._protocol, self._prefix, self._progress = protocol, prefix, progress
        kind = "vector" if score == "pooled" else model.kind
        packs = alignment is not None and score == "model" and alignment[0] in packing.MODES
        self._caption_blocks = self._packed if packs else _as_they_are

        @jax.jit
        def block_scores(
            params: Any, images: Embeddings, captions: Embeddings | PackedCaptions
        ) -> jax.Array:
            if isinstance(captions, PackedCaptions):
                assert alignment is not None
                return packing.packed_scores(images, captions, *alignment)
            pair = pooled_score if score == "pooled" else pair_scorer(model, params)
            devices = encoder.mesh.shape["data"]
            return score_matrix(pair, images, captions, kind=kind, devices=devices)

        self._block_scores = block_scores

    def encode(self, params: Any) -> tuple[Encoded, Encoded]:
        """All images and all captions of the split."""
        images = self._encoder.images(params, self._image_batches)
        return images, self._encoder.captions(params, self._caption_batches)

    def scores(self, params: Any, images: Encoded, captions: Encoded) -> np.ndarray:
        """Scores [I, C] of all images with all captions, block by block."""
        blocks = list(self._caption_blocks(captions))
        count = len(images.blocks) * len(blocks)
        rows = []
        with tqdm(
            total=count, desc="scores", unit="block", leave=False, disable=not self._progress
        ) as bar:
            for block, info in zip(images.blocks, images.rows, strict=True):
                # Dispatched for all captions before the first is fetched: the devices never wait.
                parts = [self._block_scores(params, block, other) for other, _ in blocks]
                row = []
                for part, (_, kept) in zip(parts, blocks, strict=True):
                    row.append(partitioning.fetch(part)[:, kept])
                    bar.update()
                rows.append(np.concatenate(row, axis=1)[info["mask"]])
        return np.concatenate(rows)

    def _packed(self, captions: Encoded) -> Iterator[tuple[PackedCaptions, slice]]:
        """Blocks of words without padding, and which of their columns are captions."""

        def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for block, rows in zip(captions.blocks, captions.rows, strict=True):
                tokens, mask = partitioning.fetch((block.tokens, block.mask))
                yield tokens[rows["mask"]], mask[rows["mask"]]

        for packed, count in packing.pack_captions(parts()):
            yield partitioning.replicate(packed, self._encoder.mesh), slice(count)

    def scored_split(self, params: Any) -> ScoredSplit:
        """The score matrix that the metrics are made from."""
        images, captions = self.encode(params)
        scores = self.scores(params, images, captions)
        return ScoredSplit(scores, images.image_ids, captions.image_ids)

    def parts(self, params: Any) -> Iterator[Part]:
        """The scores that the metrics are made from: both directions of every fold."""
        split = self.scored_split(params)
        yield from parts_of(split.scores, split.image_ids, split.caption_image_ids, self._protocol)

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        """Yields i2t/r1, ..., t2i/mean_rank, rsum."""
        for name, value in metrics_of_parts(self.parts(params)).items():
            yield self._prefix + name, value
