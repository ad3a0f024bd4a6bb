"""Alignment scores of many captions with no work spent on padding.

The words of all captions are laid side by side in blocks of one size, and a caption is all in one
block. A block is one matrix product with the regions of the images, the maximum over each image's
regions, and sums over each caption's words. It gives the scores of `ops.alignment` for the modes
that pool words by their best regions.
"""

from collections.abc import Iterator
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.ops.alignment import LSE_TEMPERATURE
from xmodal_jax.ops.embeddings import Embeddings, without_padding

MODES = ("MrSw", "MrAVGw", "MrLSEw")
# Words of a block: so many that the product is efficient, so few that what follows it, which goes
# over all similarities once more, mostly finds them in a processor's cache.
BLOCK = 512
_WORDS = 4  # of a caption, at which a block holds as many as it has places for


@flax.struct.dataclass
class PackedCaptions:
    """One block of whole captions.

    Attributes:
      words: [K, D], zeros on filler.
      caption: int32 [K], ascending, number of the word's caption within the block; on filler that
        of one more caption.
      length: int32 [M], words of each caption; 0 where there is none.
    """

    words: jax.Array | np.ndarray
    caption: jax.Array | np.ndarray
    length: jax.Array | np.ndarray


def pack_captions(
    captions: Iterator[tuple[np.ndarray, np.ndarray]], size: int = BLOCK
) -> Iterator[tuple[PackedCaptions, int]]:
    """Blocks of captions in their order, each with how many captions it holds.

    Args:
      captions: parts of tokens [C, W, D] and mask [C, W], as numpy arrays.
      size: words of a block, at least W.
    """
    held: list[np.ndarray] = []
    free = size
    for tokens, mask in captions:
        if mask.shape[1] > size:
            raise ValueError(f"captions of {mask.shape[1]} words do not fit into blocks of {size}")
        for row, valid in zip(tokens, mask, strict=True):
            words = row[valid]
            if len(words) > free or len(held) == size // _WORDS:
                yield _block(held, size), len(held)
                held, free = [], size
            held.append(words)
            free -= len(words)
    if held:
        yield _block(held, size), len(held)


def _block(captions: list[np.ndarray], size: int) -> PackedCaptions:
    words = np.concatenate(captions)
    places = size // _WORDS
    length = np.zeros(places, np.int32)
    length[: len(captions)] = [len(w) for w in captions]
    caption = np.full(size, places, np.int32)
    caption[: len(words)] = np.repeat(np.arange(places), length)
    filler = np.zeros((size - len(words), words.shape[1]), words.dtype)
    return PackedCaptions(np.concatenate([words, filler]), caption, length)


@partial(jax.jit, static_argnames=("mode", "fill_zero"))
def packed_scores(
    images: Embeddings, captions: PackedCaptions, mode: str, fill_zero: bool = False
) -> jax.Array:
    """Scores [I, M] of images with the captions of a block; mode, fill_zero: `alignment_score`."""
    regions = without_padding(images.tokens, images.mask)
    wide = jnp.promote_types(regions.dtype, jnp.float32)
    # [I, R, K]
    similar = jnp.einsum("ird,kd->irk", regions, captions.words, preferred_element_type=wide)
    outside = 0.0 if fill_zero else -jnp.inf
    best = jnp.max(jnp.where(images.mask[..., None], similar, outside), axis=1)
    found = jnp.any(images.mask, axis=1, keepdims=True)
    scores = _pool_words(jnp.where(found, best, 0.0).T, captions, mode).T
    return jnp.where(found, scores, 0.0)


def _pool_words(best: jax.Array, captions: PackedCaptions, mode: str) -> jax.Array:
    """best: [K, I] -> [M, I]."""
    places = captions.length.shape[0]
    pool = lambda how, values: how(
        values, captions.caption, num_segments=places + 1, indices_are_sorted=True
    )
    if mode == "MrLSEw":
        best = best / LSE_TEMPERATURE
        highest = pool(jax.ops.segment_max, best)
        shifted = jnp.exp(best - highest[captions.caption])
        total = pool(jax.ops.segment_sum, shifted)[:places]
        there = captions.length[:, None] > 0
        return jnp.where(there, highest[:places] + jnp.log(jnp.where(there, total, 1.0)), 0.0)
    total = pool(jax.ops.segment_sum, best)[:places]
    if mode == "MrAVGw":
        return total / jnp.maximum(captions.length, 1)[:, None]
    if mode == "MrSw":
        return total
    raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")
