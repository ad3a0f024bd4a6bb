"""Pointing: the share of words whose most similar region is the true one."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax import partitioning
from xmodal_jax.errors import UserError
from xmodal_jax.evaluators.encoding import Batches, Encoder, by_image_id, pair_similarities
from xmodal_jax.evaluators.outcomes import Outcome, means
from xmodal_jax.ops.embeddings import Embeddings

Links = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@jax.jit
def _best_regions(images: Embeddings, captions: Embeddings) -> jax.Array:
    """Row i of both is a pair -> [B, W] the most similar valid region of each word."""
    return jnp.argmax(pair_similarities(images, captions), axis=1)


class PointingEvaluator:
    """Needs data with true links, as the synthetic scenes have."""

    def __init__(
        self,
        encoder: Encoder,
        image_batches: Batches,
        caption_batches: Batches,
        links: Links,
        *,
        prefix: str = "",
    ) -> None:
        """links: caption ids, character starts and ends, true regions; all [L].

        Raises:
          UserError: there are none.
        """
        if not len(links[0]):
            raise UserError(
                "evaluate.pointing=True: the split has no links of words to regions; "
                "set it to False"
            )
        self._encoder = encoder
        self._image_batches, self._caption_batches = image_batches, caption_batches
        self._prefix = prefix
        self._links: dict[int, list[tuple[int, int, int]]] = {}
        for caption, start, end, region in zip(*links, strict=True):
            self._links.setdefault(int(caption), []).append((int(start), int(end), int(region)))

    def run(self, params: Any) -> Iterator[tuple[str, float]]:
        """Yields `pointing`, the percentage of linked words with the right region."""
        yield from means(self.outcomes(params), self._prefix)

    def outcomes(self, params: Any) -> dict[str, Outcome]:
        """`pointing`: 100 for each linked word with the right region, 0 for the others."""
        images = self._encoder.images(params, self._image_batches)
        every, row_of = by_image_id(images)
        owners: list[int] = []
        hits: list[float] = []
        for block, rows in self._encoder.caption_blocks(params, self._caption_batches):
            own = np.array([row_of.get(int(image), 0) for image in rows["image_id"]])
            best = partitioning.fetch(
                _best_regions(jax.tree.map(lambda x, r=own: x[r], every), block)
            )
            for i in np.flatnonzero(rows["mask"]):
                for start, end, region in self._links.get(int(rows["caption_id"][i]), ()):
                    for n in tokens_between(rows["offsets"][i], start, end):
                        # Embeddings leave out the [CLS] slot, token 0.
                        hit = n - 1 < best.shape[1] and best[i, n - 1] == region
                        owners.append(int(rows["image_id"][i]))
                        hits.append(100.0 * hit)
        return {"pointing": Outcome(np.array(owners, np.int64), np.array(hits))}


def tokens_between(offsets: np.ndarray, start: int, end: int) -> np.ndarray:
    """Positions of the tokens (offsets [W, 2]) that lie within characters start..end."""
    inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
    return np.flatnonzero(inside)
