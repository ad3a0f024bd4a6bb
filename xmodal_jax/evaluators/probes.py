"""Probes: how often a caption scores higher with its image than a wrong version of itself."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from xmodal_jax import partitioning
from xmodal_jax.evaluators.encoding import Batches, Encoder, by_image_id
from xmodal_jax.evaluators.outcomes import Outcome, means
from xmodal_jax.metrics.probes import CATEGORIES, Perturber
from xmodal_jax.models.scorers import pair_scorer
from xmodal_jax.ops.embeddings import Embeddings

# Batches of texts with the ids of their images, as `caption_batches` makes them.
TextBatches = Callable[[Sequence[str], np.ndarray], Iterable[dict[str, np.ndarray]]]


class ProbeEvaluator:
    """Accuracy for each category of wrong captions; one that scores the same counts as half."""

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        image_batches: Batches,
        text_batches: TextBatches,
        captions: Sequence[str],
        image_ids: np.ndarray,
        *,
        prefix: str = "",
    ) -> None:
        """captions: C texts of the split; image_ids: [C] the image of each."""
        self._encoder, self._prefix = encoder, prefix
        self._image_batches, self._text_batches = image_batches, text_batches
        self._captions, self._image_ids = captions, image_ids

        @jax.jit
        def pair_scores(params: Any, images: Embeddings, captions: Embeddings) -> jax.Array:
            return jax.vmap(pair_scorer(model, params))(images, captions)

        self._pair_scores = pair_scores

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        """Yields probes/CATEGORY in percent, for categories that apply to any caption."""
        yield from means(self.outcomes(params), self._prefix)

    def outcomes(self, params: Any) -> dict[str, Outcome]:
        """By the name of a category: 100 where the caption wins, 50 where both are equal."""
        images = by_image_id(self._encoder.images(params, self._image_batches))
        right = self._scores(params, images, self._captions, self._image_ids)
        perturber = Perturber(self._captions)
        out = {}
        for category in CATEGORIES:
            changed = dict(perturber.every(category))
            if not changed:
                continue
            numbers = np.array(list(changed))
            owners = self._image_ids[numbers]
            wrong = self._scores(params, images, list(changed.values()), owners)
            values = 50.0 * (np.sign(right[numbers] - wrong) + 1)
            out[f"probes/{category}"] = Outcome(owners, values)
        return out

    def _scores(
        self,
        params: Any,
        images: tuple[Embeddings, dict[int, int]],
        texts: Sequence[str],
        image_ids: np.ndarray,
    ) -> np.ndarray:
        """[N] scores of texts with their own images."""
        every, row_of = images
        batches = lambda: self._text_batches(texts, image_ids)
        out = []
        for block, rows in self._encoder.caption_blocks(params, batches):
            own = np.array([row_of[int(image)] for image in rows["image_id"]])
            pairs = jax.tree.map(lambda x, own=own: x[own], every)
            found = partitioning.fetch(self._pair_scores(params, pairs, block))
            out.append(found[rows["mask"]])
        return np.concatenate(out)
