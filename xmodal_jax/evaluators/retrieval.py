"""Retrieval metrics of a split: every image and caption encoded once, every pair scored once."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from tqdm import tqdm

from xmodal_jax import partitioning
from xmodal_jax.errors import UserError
from xmodal_jax.evaluators.encoding import Batches, Encoded, Encoder, Rows
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


# Blocks of captions, each with which of its columns of scores are captions.
Blocks = Iterator[tuple[Embeddings | PackedCaptions, np.ndarray | slice]]


class RetrievalEvaluator:
    """R@1/5/10, median and mean rank in both directions, and rsum.

    Memory is bounded by what the images need. Their embeddings are kept, split over the devices;
    captions come by in blocks, each of which is encoded, packed, scored with all images and
    dropped, so that two of them are there at a time. The host holds one batch and the scores,
    twice while they are put together. COCO 5K (5,000 images of 36 regions, 25,000 captions of up to
    32 words, 1,024 wide) has 737 MB of images, blocks of 13 MB, and 500 MB of scores, where all
    embeddings of captions would be 3.3 GB.
    """

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
        items: int | None = None,
        alignment: tuple[str, bool] | None = None,
    ) -> None:
        """Args: the batches of a split, a protocol of metrics.ranking, a prefix of the names.

        score: "model", the model's own; "pooled", the dot product of the pooled vectors.
        items: images and captions of the split, which the progress bar counts.
        alignment: the model's; with it captions are packed where their score allows that.
        """
        self._encoder = encoder
        self._image_batches, self._caption_batches = image_batches, caption_batches
        self._protocol, self._prefix = protocol, prefix
        self._progress, self._items = progress, items
        kind = "vector" if score == "pooled" else model.kind
        packs = alignment is not None and score == "model" and alignment[0] in packing.MODES
        self._prepared = self._packed if packs else self._as_they_are

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

    def scored_split(self, params: Any) -> ScoredSplit:
        """The score matrix that the metrics are made from."""
        images, ids = Encoded([], []), []
        with self._bar("images and captions", self._items) as bar:
            for block, rows in self._encoder.image_blocks(params, self._image_batches):
                images.blocks.append(block)
                images.rows.append(rows)
                bar.update(int(rows["mask"].sum()))

            def captions() -> Iterator[tuple[Embeddings, Rows]]:
                for block, rows in self._encoder.caption_blocks(params, self._caption_batches):
                    ids.append(rows["image_id"][rows["mask"]])
                    yield block, rows

            scores = self.scores(params, images, captions(), bar)
        return ScoredSplit(scores, images.image_ids, np.concatenate(ids))

    def scores(
        self,
        params: Any,
        images: Encoded,
        captions: Iterable[tuple[Embeddings, Rows]],
        bar: tqdm,
    ) -> np.ndarray:
        """Scores [I, C] of all images with all captions.

        Args:
          params: of the model.
          images: all of them.
          captions: blocks, each of which is looked at once.
          bar: is moved on by the number of captions done.
        """
        valid = [rows["mask"] for rows in images.rows]
        columns: list[np.ndarray] = []
        pending = None
        for block, kept in self._prepared(captions):
            parts = [self._block_scores(params, rows, block) for rows in images.blocks]
            # Fetched one block late: the devices never wait.
            if pending is not None:
                columns.append(_fetched(*pending, valid))
                bar.update(columns[-1].shape[1])
            pending = parts, kept
        if pending is not None:
            columns.append(_fetched(*pending, valid))
            bar.update(columns[-1].shape[1])
        return np.concatenate(columns, axis=1)

    def _as_they_are(self, captions: Iterable[tuple[Embeddings, Rows]]) -> Blocks:
        for block, rows in captions:
            yield block, rows["mask"]

    def _packed(self, captions: Iterable[tuple[Embeddings, Rows]]) -> Blocks:
        """Blocks of words without padding."""

        def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for block, rows in captions:
                tokens, mask = partitioning.fetch((block.tokens, block.mask))
                yield tokens[rows["mask"]], mask[rows["mask"]]

        for packed, count in packing.pack_captions(parts()):
            yield partitioning.replicate(packed, self._encoder.mesh), slice(count)

    def _bar(self, name: str, total: int | None) -> tqdm:
        return tqdm(total=total, desc=name, unit="item", leave=False, disable=not self._progress)

    def parts(self, params: Any) -> Iterator[Part]:
        """The scores that the metrics are made from: both directions of every fold."""
        split = self.scored_split(params)
        yield from parts_of(split.scores, split.image_ids, split.caption_image_ids, self._protocol)

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        """Yields i2t/r1, ..., t2i/mean_rank, rsum."""
        for name, value in metrics_of_parts(self.parts(params)).items():
            yield self._prefix + name, value


def _fetched(
    parts: list[jax.Array], kept: np.ndarray | slice, valid: list[np.ndarray]
) -> np.ndarray:
    """Scores [I, c] of the images that are no filler with the captions of one block."""
    found = zip(partitioning.fetch(parts), valid, strict=True)
    return np.concatenate([part[rows][:, kept] for part, rows in found])
