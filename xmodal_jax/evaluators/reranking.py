"""Retrieval metrics of a pair model in two stages: pooled vectors, then the best few by pair.

A pair model costs a whole network for each pair. The dot products of the pooled vectors choose k
candidates of each query, and only those are scored: k (I + C) pairs instead of I C.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from tqdm import tqdm

from xmodal_jax import partitioning
from xmodal_jax.evaluators.encoding import Batches, Encoder
from xmodal_jax.evaluators.retrieval import RetrievalEvaluator
from xmodal_jax.metrics.parts import Part, make_part
from xmodal_jax.metrics.ranking import folds
from xmodal_jax.models.scorers import pair_scorer
from xmodal_jax.ops.embeddings import Embeddings

# Of a block's tokens, one item's for each pair. What a scorer makes of them is some times as large.
_BLOCK_BYTES = 2**26


def best_targets(first: np.ndarray, k: int) -> np.ndarray:
    """Indices [Q, k] of the k highest scores of each row [Q, T]; of equal ones the first come."""
    return np.stack([np.argsort(-row, kind="stable")[:k] for row in first])


def merge_stages(first: np.ndarray, candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores [Q, T] that rank the candidates first, by their new scores, then all others.

    Args:
      first: [Q, T] scores of the first stage, which keep their order below the candidates.
      candidates: [Q, k] targets that were scored again.
      scores: [Q, k] their new scores.

    Returns:
      float64 [Q, T]. A score that is not finite stays so, for the metrics to report.
    """
    # The two stages have different scales: the first is moved below the lowest new score.
    out = first.astype(np.float64)  # where float32 would make scores equal that are not
    lowest = np.fmin.reduce(scores, axis=1).astype(np.float64)
    out += (lowest - np.fmax.reduce(out, axis=1) - 1)[:, None]
    np.put_along_axis(out, candidates, scores, axis=1)
    return out


class CandidateScorer:
    """Scores each query with its own candidates; compiled once for each direction."""

    def __init__(self, model: nn.Module, mesh: jax.sharding.Mesh) -> None:
        """model: its `score` is applied to one query and one candidate at a time."""
        self._mesh = mesh

        @partial(jax.jit, static_argnames="direction")
        def block_scores(
            params: Any, queries: Embeddings, candidates: Embeddings, direction: str
        ) -> jax.Array:
            score = pair_scorer(model, params)
            pair = score if direction == "i2t" else lambda caption, image: score(image, caption)
            # The query has no axis in the inner map: what depends on it alone is computed once.
            return jax.vmap(jax.vmap(pair, in_axes=(None, 0)))(queries, candidates)

        self._block_scores = block_scores

    def block_size(self, queries: Embeddings, targets: Embeddings, candidates: np.ndarray) -> int:
        """Queries scored at once, a multiple of the devices that a block is split over."""
        count, k = candidates.shape
        devices = self._mesh.shape["data"]
        # Of the two, the longer one: a scorer may hold a vector for each token of either.
        per_pair = max(queries.tokens[0].nbytes, targets.tokens[0].nbytes)
        fitting = _BLOCK_BYTES // (k * per_pair * devices)
        return max(1, min(fitting, -(-count // devices))) * devices

    def __call__(
        self,
        params: Any,
        queries: Embeddings,
        targets: Embeddings,
        candidates: np.ndarray,
        *,
        direction: str,
        bar: tqdm,
    ) -> np.ndarray:
        """Scores [Q, k] of each query with its candidates.

        Args:
          params: parameters of the model.
          queries: Q items on the host; images where direction is "i2t", captions where "t2i".
          targets: T items on the host.
          candidates: [Q, k] targets of each query.
          direction: which of the two the queries are.
          bar: is moved on by the number of queries done.
        """
        count, size = len(candidates), self.block_size(queries, targets, candidates)
        out, pending = [], None
        for start in range(0, count, size):
            # The last block is filled up with its last query, so that all have one shape.
            rows = np.minimum(np.arange(start, start + size), count - 1)
            inputs = (self._put(queries, rows), self._put(targets, candidates[rows]))
            block = self._block_scores(params, *inputs, direction=direction)
            # Fetched one block late: the next one is copied while the devices compute.
            if pending is not None:
                out.append(partitioning.fetch(pending))
                bar.update(size)
            pending = block
        out.append(partitioning.fetch(pending))
        bar.update(count - (len(out) - 1) * size)
        return np.concatenate(out)[:count]

    def _put(self, items: Embeddings, index: np.ndarray) -> Embeddings:
        chosen = {name: value[index] for name, value in vars(items).items()}
        return Embeddings(**partitioning.put_batch(chosen, self._mesh))


class RerankingEvaluator(RetrievalEvaluator):
    """The metrics of RetrievalEvaluator where a pair model scores the best k of a first stage."""

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        image_batches: Batches,
        caption_batches: Batches,
        *,
        top_k: int,
        protocol: str = "full",
        prefix: str = "",
        progress: bool = False,
        items: int | None = None,
    ) -> None:
        """Args: as of RetrievalEvaluator; top_k: candidates of each query, in both directions."""
        super().__init__(
            model,
            encoder,
            image_batches,
            caption_batches,
            score="pooled",
            protocol=protocol,
            prefix=prefix,
            progress=progress,
            items=items,
        )
        self._top_k = top_k
        self._scorer = CandidateScorer(model, encoder.mesh)

    def parts(self, params: Any) -> Iterator[Part]:
        """Both directions of every fold; candidates are chosen within each fold.

        Embeddings of all images and captions are held, by the host too.
        """
        images = self._encoder.images(params, self._image_batches)
        captions = self._encoder.captions(params, self._caption_batches)
        image_ids, caption_ids = images.image_ids, captions.image_ids
        with self._bar("first stage", len(caption_ids)) as bar:
            first = self.scores(
                params, images, zip(captions.blocks, captions.rows, strict=True), bar
            )
        numbers = np.arange(len(image_ids)), np.arange(len(caption_ids))
        all_images, all_captions = images.on_host(), captions.on_host()
        with self._bar("re-ranking", len(image_ids) + len(caption_ids)) as bar:
            rerank = partial(self.rerank, params, bar=bar)
            for fold, (rows, columns) in enumerate(folds(image_ids, caption_ids, self._protocol)):
                part = first[rows][:, columns]
                own = jax.tree.map(lambda x, rows=rows: x[rows], all_images)
                texts = jax.tree.map(lambda x, columns=columns: x[columns], all_captions)
                sides = (
                    (numbers[0][rows], image_ids[rows]),
                    (numbers[1][columns], caption_ids[columns]),
                )
                # One direction after the other: two matrices of all pairs would be large.
                i2t = rerank(own, texts, part, direction="i2t")
                yield make_part("i2t", fold, *sides, i2t)
                del i2t
                t2i = rerank(texts, own, part.T, direction="t2i")
                yield make_part("t2i", fold, *sides, t2i)

    def rerank(
        self,
        params: Any,
        queries: Embeddings,
        targets: Embeddings,
        first: np.ndarray,
        *,
        direction: str,
        bar: tqdm,
    ) -> np.ndarray:
        """Scores [Q, T] in two stages from those of the first; see `merge_stages`."""
        candidates = best_targets(first, self._top_k)
        scores = self._scorer(params, queries, targets, candidates, direction=direction, bar=bar)
        return merge_stages(first, candidates, scores)
