"""Which region of an image answers which word of a caption, in words for a reader."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax import partitioning
from xmodal_jax.evaluators.encoding import Batches, Encoder, by_image_id, pair_similarities
from xmodal_jax.ops.embeddings import Embeddings


@jax.jit
def _best(images: Embeddings, captions: Embeddings) -> tuple[jax.Array, jax.Array]:
    """Row i of both is a pair -> [B, W] the best region of each word, and how similar it is."""
    sim = pair_similarities(images, captions)
    return jnp.argmax(sim, axis=1), jnp.max(sim, axis=1)


class Aligner:
    """Writes `word:region:similarity` for each token of a caption, separated by spaces."""

    def __init__(
        self,
        encoder: Encoder,
        image_batches: Batches,
        caption_batches: Batches,
        captions: Sequence[str],
    ) -> None:
        """captions: C texts of the split, in the order of the batches."""
        self._encoder, self._captions = encoder, captions
        self._image_batches, self._caption_batches = image_batches, caption_batches

    def __call__(self, params: Any, image_ids: np.ndarray) -> list[str]:
        """C texts, of each caption with the image that has the given id [C]."""
        images = self._encoder.images(params, self._image_batches)
        every, row_of = by_image_id(images)
        out: list[str] = []
        for block, rows in self._encoder.caption_blocks(params, self._caption_batches):
            count = int(rows["mask"].sum())
            wanted = [row_of[int(image)] for image in image_ids[len(out) : len(out) + count]]
            # Filler rows at the end get any image.
            own = np.array(wanted + [0] * (len(rows["mask"]) - count))
            pairs = jax.tree.map(lambda x, own=own: x[own], every)
            best, similarity = partitioning.fetch(_best(pairs, block))
            for i in range(count):
                text = self._captions[len(out)]
                out.append(_line(text, rows["offsets"][i], best[i], similarity[i]))
        return out


def _line(text: str, offsets: np.ndarray, best: np.ndarray, similarity: np.ndarray) -> str:
    """Embeddings leave out the [CLS] slot: entry n belongs to token n + 1."""
    words = []
    for (start, end), region, value in zip(offsets[1:], best, similarity, strict=False):
        if end > start:
            words.append(f"{text[start:end]}:{region}:{value:.3f}")
    return " ".join(words)
