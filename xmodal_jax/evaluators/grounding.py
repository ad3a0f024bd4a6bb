"""Grounding: does the region that answers a phrase lie where people drew its box?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data_pipeline.entities import Phrase
from xmodal_jax import partitioning
from xmodal_jax.evaluators.encoding import Batches, Encoder, by_image_id, pair_similarities
from xmodal_jax.evaluators.outcomes import Outcome, means
from xmodal_jax.evaluators.pointing import tokens_between

OVERLAP = 0.5  # intersection over union


def hits(box: np.ndarray, true: np.ndarray) -> tuple[bool, bool]:
    """Whether a box [4] points at, and whether it overlaps, one of the true boxes [K, 4].

    It points at a box where its centre lies (the pointing game), and overlaps one by half.
    """
    centre = (box[:2] + box[2:]) / 2
    inside = np.all((centre >= true[:, :2]) & (centre <= true[:, 2:]), axis=1)
    shared = np.clip(np.minimum(box[2:], true[:, 2:]) - np.maximum(box[:2], true[:, :2]), 0, None)
    common = shared.prod(axis=1)
    areas = (true[:, 2:] - true[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    union = np.maximum(areas - common, 1e-12)
    return bool(inside.any()), bool((common / union >= OVERLAP).any())


class GroundingEvaluator:
    """Share of phrases whose best region points at their box, and of those that overlap it."""

    def __init__(
        self,
        encoder: Encoder,
        image_batches: Batches,
        caption_batches: Batches,
        phrases: Mapping[int, Sequence[Phrase]],
        *,
        prefix: str = "",
    ) -> None:
        """phrases: by caption id."""
        self._encoder, self._prefix, self._phrases = encoder, prefix, phrases
        self._image_batches, self._caption_batches = image_batches, caption_batches

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        """Yields grounding/points and grounding/overlaps in percent."""
        yield from means(self.outcomes(params), self._prefix)

    def outcomes(self, params: Any) -> dict[str, Outcome]:
        """100 or 0 for each phrase; its region has the highest sum over the phrase's words.

        Phrases of an image whose regions have no boxes are left out.
        """
        images = self._encoder.images(params, self._image_batches)
        every, row_of = by_image_id(images)
        boxes = np.concatenate([batch["boxes"] for batch in self._image_batches()])
        owners: list[int] = []
        found: list[tuple[bool, bool]] = []
        for block, rows in self._encoder.caption_blocks(params, self._caption_batches):
            own = np.array([row_of.get(int(image), 0) for image in rows["image_id"]])
            pairs = jax.tree.map(lambda x, own=own: x[own], every)
            sim = partitioning.fetch(pair_similarities(pairs, block))
            for i in np.flatnonzero(rows["mask"]):
                for phrase in self._phrases.get(int(rows["caption_id"][i]), ()):
                    # Embeddings leave out the [CLS] slot, token 0.
                    words = tokens_between(rows["offsets"][i], phrase.start, phrase.end) - 1
                    words = words[words < sim.shape[2]]
                    if not len(words) or not boxes[own[i]].any():
                        continue
                    region = int(np.argmax(sim[i][:, words].sum(axis=1)))
                    owners.append(int(rows["image_id"][i]))
                    found.append(hits(boxes[own[i], region], phrase.boxes))
        values = 100.0 * np.array(found).reshape(-1, 2)
        ids = np.array(owners, np.int64)
        return {
            "grounding/points": Outcome(ids, values[:, 0]),
            "grounding/overlaps": Outcome(ids, values[:, 1]),
        }
