"""Chosen pairs of images and captions, word by word: which region answers which."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from xmodal_jax import partitioning
from xmodal_jax.evaluators.encoding import Batches, Encoder, Rows, by_image_id, pair_similarities
from xmodal_jax.matched_words import Alignment, match_words


class PairAligner:
    """Aligns a few pairs: of a split it encodes the images that are asked for only."""

    def __init__(
        self,
        encoder: Encoder,
        image_batches: Batches,
        text_batches: Callable[[Sequence[str], np.ndarray], Iterable[Rows]],
    ) -> None:
        """text_batches: of texts and the image id of each, such as input_pipeline.text_batches."""
        self._encoder = encoder
        self._image_batches, self._text_batches = image_batches, text_batches

    def __call__(
        self, params: Any, image_ids: np.ndarray, captions: Sequence[str]
    ) -> list[Alignment]:
        """Of P pairs: ids [P] of images of the split, and P captions, of whichever images.

        Works in a single process.
        """
        if not len(captions):
            return []
        boxes: dict[int, np.ndarray] = {}
        wanted = set(image_ids.tolist())
        images = self._encoder.images(params, lambda: _only(self._image_batches(), wanted, boxes))
        every, row_of = by_image_id(images)
        out: list[Alignment] = []
        texts = self._encoder.caption_blocks(
            params, lambda: self._text_batches(captions, image_ids)
        )
        for block, rows in texts:
            own = np.array([row_of[int(image)] for image in rows["image_id"]])
            pairs = jax.tree.map(lambda x, own=own: x[own], every)
            similar = partitioning.fetch(pair_similarities(pairs, block))
            masks = partitioning.fetch(block.mask)
            for i in np.flatnonzero(rows["mask"]):
                regions, words = np.asarray(pairs.mask[i]), masks[i]
                # Embeddings leave out the [CLS] slot, and some models the last words.
                spans = rows["offsets"][i][1:][: len(words)][words]
                alignment = match_words(captions[len(out)], spans, similar[i][regions][:, words])
                out.append(Alignment(boxes[int(rows["image_id"][i])][regions], alignment))
        return out


def _only(
    batches: Iterable[Rows], wanted: set[int], boxes: dict[int, np.ndarray]
) -> Iterator[Rows]:
    """Batches of the wanted images alone, of the same size; their boxes are kept by their ids."""
    kept: list[Rows] = []
    size = 1
    for batch in batches:
        size = len(batch["mask"])
        for row in np.flatnonzero(batch["mask"]):
            if (image := int(batch["image_id"][row])) in wanted:
                boxes[image] = batch["boxes"][row]
                kept.append({k: v[row] for k, v in batch.items() if k != "mask"})
        while len(kept) >= size:
            yield _stacked(kept[:size], size)
            kept = kept[size:]
    if kept:
        yield _stacked(kept, size)


def _stacked(rows: list[Rows], size: int) -> Rows:
    """A batch of these rows, filled up with copies of the last one."""
    chosen = [rows[min(n, len(rows) - 1)] for n in range(size)]
    batch = {name: np.stack([row[name] for row in chosen]) for name in rows[0]}
    return batch | {"mask": np.arange(size) < len(rows)}
