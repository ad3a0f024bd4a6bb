"""Synthetic images like those of an index, so that a search can be timed at sizes that nobody has.

A synthetic image takes its regions from two random images. Its mean is a mixture of theirs; its
regions' deviations from the mean are those of the two, with a quarter of their variance replaced by
deviations of regions of other images. The vectors are then unit ones again. So the first two
moments within and between images stay as they are; what is finer does not.
"""

from collections.abc import Iterator

import jax
import numpy as np

from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Item, Part

_SAMPLE = 4096  # images whose mixtures are made
_NOISE = 0.25  # of the variance within an image
_PART = 1024  # images
_BLOCK = 128  # images that are drawn at once: memory for more is asked of the system every time


class Mixtures:
    """Draws synthetic items from the distribution of an index's."""

    def __init__(self, index: Index, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        rows = np.flatnonzero(index.live)
        rows = np.sort(self._rng.choice(rows, min(_SAMPLE, len(rows)), replace=False))
        self._items: Embeddings = jax.tree.map(np.asarray, index.stored(rows))
        self._boxes = index.stored_boxes(rows)
        tokens, mask = np.asarray(self._items.tokens), np.asarray(self._items.mask)[..., None]
        counts = np.maximum(mask.sum(1), 1).astype(np.float32)
        self._means = (tokens * mask).sum(1) / counts
        self._deviations = ((tokens - self._means[:, None]) * mask).astype(np.float32)
        # A model of kind vector keeps no regions.
        found = self._deviations[mask[..., 0]]
        self._pool = found if len(found) else np.zeros((1, tokens.shape[2]), np.float32)

    def parts(self, count: int, size: int = _PART) -> Iterator[Part]:
        """So many items, with ids synthetic-0, synthetic-1, ..."""
        for start in range(0, count, size):
            numbers = range(start, min(start + size, count))
            items = [Item(f"synthetic-{n}", fields={"split": "synthetic"}) for n in numbers]
            blocks = [self.draw(min(_BLOCK, len(items) - n)) for n in range(0, len(items), _BLOCK)]
            whole: Embeddings = jax.tree.map(lambda *x: np.concatenate(x), *blocks)
            # Boxes have no part in a search, but a size.
            some = self._rng.integers(0, len(self._means), len(items))
            yield Part(items, whole, None if self._boxes is None else self._boxes[some])

    def draw(self, count: int) -> Embeddings:
        """Embeddings of so many items; numpy arrays."""
        rng, items = self._rng, self._items
        one, other = rng.integers(0, len(self._means), (2, count))
        turn = rng.uniform(0, np.pi / 2, (count, 1)).astype(np.float32)
        mixed = lambda x: (
            x.mean(0) + np.cos(turn) * (x[one] - x.mean(0)) + np.sin(turn) * (x[other] - x.mean(0))
        )
        all_masks = np.asarray(items.mask)
        mask = all_masks[one]
        swapped = all_masks[other] & (rng.random(mask.shape) < 0.5)
        tokens = self._deviations[one]
        tokens[swapped] = self._deviations[other][swapped]
        tokens *= np.float32(np.sqrt(1 - _NOISE))
        # Of valid regions only: padding would add nothing, and leave copies of real ones.
        noise = self._pool[rng.integers(0, len(self._pool), mask.shape)]
        tokens += np.float32(np.sqrt(_NOISE)) * noise
        tokens += mixed(self._means)[:, None]
        tokens = _unit(tokens)
        tokens[~mask] = 0
        pooled = _unit(mixed(np.asarray(items.pooled)))
        # Arrays of numpy stand for JAX's everywhere on the host.
        return Embeddings(tokens, mask, pooled)  # type: ignore[arg-type]


def _unit(x: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("...d,...d->...", x, x))[..., None]
    return (x / np.maximum(norms, 1e-12)).astype(np.float32)
