"""Synthetic images like those of an index, so that a search can be timed at sizes that nobody has.

A synthetic image takes its regions from two random images. Its mean is a mixture of theirs, its
regions' deviations from the mean are those of the two with a quarter of their variance replaced by
noise of the measured covariance within images, and the vectors are then unit ones again. So the
first two moments within and between images stay as they are; what is finer does not.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Item, Part

_SAMPLE = 4096  # images whose mixtures are made
_NOISE = 0.25  # of the variance within an image
_PART = 2048  # images


class Mixtures:
    """Draws synthetic items from the distribution of an index's."""

    def __init__(self, index: Index, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        rows = np.flatnonzero(index.live)
        rows = np.sort(self._rng.choice(rows, min(_SAMPLE, len(rows)), replace=False))
        self._items: Embeddings = jax.tree.map(np.asarray, index.stored(rows))
        self._boxes = index.stored_boxes(rows)
        tokens, mask = np.asarray(self._items.tokens), np.asarray(self._items.mask)[..., None]
        counts = np.maximum(mask.sum(1), 1)
        self._means = (tokens * mask).sum(1) / counts
        self._deviations = ((tokens - self._means[:, None]) * mask).astype(np.float32)
        flat = self._deviations[mask[..., 0]]
        covariance = flat.T @ flat / max(len(flat), 1)
        values, vectors = np.linalg.eigh(covariance)
        self._spread = ((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T).astype(np.float32)

    def parts(self, count: int, size: int = _PART) -> Iterator[Part]:
        """So many items, with ids synthetic-0, synthetic-1, ..."""
        for start in range(0, count, size):
            numbers = range(start, min(start + size, count))
            items = [Item(f"synthetic-{n}", fields={"split": "synthetic"}) for n in numbers]
            # Boxes have no part in a search, but a size.
            some = self._rng.integers(0, len(self._means), len(items))
            boxes = None if self._boxes is None else self._boxes[some]
            yield Part(items, self.draw(len(items)), boxes)

    def draw(self, count: int) -> Embeddings:
        """Embeddings of so many items."""
        rng, items = self._rng, self._items
        one, other = rng.integers(0, len(self._means), (2, count))
        turn = rng.uniform(0, np.pi / 2, (count, 1)).astype(np.float32)
        mixed = lambda x: (
            x.mean(0) + np.cos(turn) * (x[one] - x.mean(0)) + np.sin(turn) * (x[other] - x.mean(0))
        )
        mask = np.asarray(items.mask)[one]
        swapped = np.asarray(items.mask)[other] & (rng.random(mask.shape) < 0.5)
        tokens = np.where(swapped[..., None], self._deviations[other], self._deviations[one])
        noise = rng.standard_normal(tokens.shape, np.float32) @ self._spread
        tokens = np.sqrt(1 - _NOISE) * tokens + np.sqrt(_NOISE) * noise
        tokens = _unit(tokens + mixed(self._means)[:, None]) * mask[..., None]
        return Embeddings(*map(jnp.asarray, (tokens, mask, _unit(mixed(np.asarray(items.pooled))))))


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)).astype(np.float32)
