"""Word-region alignment: scores of one image with one caption, and the matrix of all pairs.

A scorer is written for ONE pair and vmapped twice by `score_matrix`, which walks over the captions
in blocks so that the [I, C, R, W] similarities of all pairs never exist at once.
Modes and names: TERAN (Messina et al., TOMM 2021, section 3.3).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xmodal_jax.errors import UserError
from xmodal_jax.ops.embeddings import Embeddings, dot_products, l2_normalize, without_padding

PairScorer = Callable[[Embeddings, Embeddings], jax.Array]

LSE_TEMPERATURE = 0.1  # of MrLSEw
# Numbers held at once by `score_matrix`: 2**24 of them are 64 MiB in float32.
_NUMBERS_PER_BLOCK = 2**24
# On a CPU a quarter of that takes half the time: the memory of a block is touched while it is near.
_CPU_SHARE = 4


def similarities(image: Embeddings, caption: Embeddings) -> jax.Array:
    """Dot products [R, W] of one image's regions with one caption's words, at least float32."""
    return dot_products(image.tokens, caption.tokens)


def _masked_max(values: jax.Array, valid: jax.Array, axis: int, fill_zero: bool) -> jax.Array:
    """Maximum over valid entries; 0 where there is none, or a floor of 0 with `fill_zero`."""
    if fill_zero:
        return jnp.max(jnp.where(valid, values, 0.0), axis)
    best = jnp.max(jnp.where(valid, values, -jnp.inf), axis)
    return jnp.where(jnp.any(valid, axis), best, 0.0)


def _best_region_per_word(sim: jax.Array, valid: jax.Array, fill_zero: bool) -> jax.Array:
    best = _masked_max(sim, valid, 0, fill_zero)
    return jnp.sum(jnp.where(jnp.any(valid, 0), best, 0.0))


def _best_word_per_region(sim: jax.Array, valid: jax.Array, fill_zero: bool) -> jax.Array:
    best = _masked_max(sim, valid, 1, fill_zero)
    return jnp.sum(jnp.where(jnp.any(valid, 1), best, 0.0))


def _attended_sentences(
    sim: jax.Array, valid: jax.Array, image: Embeddings, caption: Embeddings
) -> jax.Array:
    """SCAN image-to-text (Lee et al., ECCV 2018) with unit temperature, summed over regions."""
    positive = jnp.where(valid, jax.nn.relu(sim), 0.0)
    weights = l2_normalize(positive.T).T  # each word's column over the regions
    weights = jnp.where(caption.mask[None, :], weights, -jnp.inf)
    weights = jnp.where(jnp.any(caption.mask), weights, 0.0)
    attended = jax.nn.softmax(weights, axis=1) @ caption.tokens
    squared = jnp.sum(jnp.square(image.tokens), -1) * jnp.sum(jnp.square(attended), -1)
    tiny = squared <= 1e-16
    norm = jnp.where(tiny, 1e-8, jnp.sqrt(jnp.where(tiny, 1.0, squared)))
    cosine = jnp.sum(image.tokens * attended, -1) / norm
    return jnp.sum(jnp.where(image.mask & jnp.any(caption.mask), cosine, 0.0))


MODES = ("MrSw", "MrAVGw", "MrLSEw", "MwSr", "symm", "sum", "mean", "scan-sentences")


def alignment_score(
    image: Embeddings, caption: Embeddings, *, mode: str, fill_zero: bool = False
) -> jax.Array:
    """Score of one image with one caption.

    Args:
      image: tokens [R, D], mask [R]; no batch axis.
      caption: tokens [W, D], mask [W]; no batch axis.
      mode: one of MODES. With A[r, w] the similarities,
        MrSw: sum over words of the best region;   MrAVGw: the same, divided by the word count;
        MrLSEw: log sum over words of exp(best region / 0.1) (CHAN, Pan et al., CVPR 2023);
        MwSr: sum over regions of the best word;   symm: MrSw + MwSr;
        sum, mean: over all region-word pairs;     scan-sentences: attention of regions to words.
      fill_zero: the public TERAN code fills padding with 0 before the maximum, so that a maximum
        beside padding is at least 0, and divides `mean` by the padded sizes. True reproduces that.

    Returns:
      A scalar. An item without any valid token scores 0.
    """
    image, caption = (
        dataclasses.replace(item, tokens=without_padding(item.tokens, item.mask))
        for item in (image, caption)
    )
    sim = similarities(image, caption)
    valid = image.mask[:, None] & caption.mask[None, :]
    if mode == "MrSw":
        return _best_region_per_word(sim, valid, fill_zero)
    if mode == "MrAVGw":
        words = jnp.maximum(jnp.sum(caption.mask), 1)
        return _best_region_per_word(sim, valid, fill_zero) / words
    if mode == "MrLSEw":
        best = _masked_max(sim, valid, 0, fill_zero) / LSE_TEMPERATURE
        pooled = jax.nn.logsumexp(jnp.where(caption.mask, best, -1e9))
        return jnp.where(jnp.any(valid), pooled, 0.0)
    if mode == "MwSr":
        return _best_word_per_region(sim, valid, fill_zero)
    if mode == "symm":
        by_word = _best_region_per_word(sim, valid, fill_zero)
        return by_word + _best_word_per_region(sim, valid, fill_zero)
    if mode == "sum":
        return jnp.sum(jnp.where(valid, sim, 0.0))
    if mode == "mean":
        count = sim.size if fill_zero else jnp.maximum(jnp.sum(valid), 1)
        return jnp.sum(jnp.where(valid, sim, 0.0)) / count
    if mode == "scan-sentences":
        return _attended_sentences(sim, valid, image, caption)
    raise UserError(f"alignment mode {mode!r} is not one of {', '.join(MODES)}")


def pooled_score(image: Embeddings, caption: Embeddings) -> jax.Array:
    """Dot product of the pooled vectors of one image and one caption (TERN, VSE++)."""
    dtype = jnp.promote_types(image.pooled.dtype, jnp.float32)
    return jnp.dot(image.pooled, caption.pooled, preferred_element_type=dtype)


def score_matrix(
    score: PairScorer,
    images: Embeddings,
    captions: Embeddings,
    *,
    chunk: int = 0,
    kind: str = "tokens",
    devices: int = 1,
) -> jax.Array:
    """Scores [I, C] of all images with all captions.

    Args:
      score: scorer of one pair.
      images: I images; captions: C captions.
      chunk: captions scored at once; 0 chooses it so that the largest array of one block stays
        near 64 MiB on each device, or 16 MiB on a CPU. Blocks are recomputed in the backward
        pass, not stored.
      kind: that of the model. A pair of kind "pair" holds vectors for each region and word, and
        not only their similarities.
      devices: among which the images are split.
    """
    count = captions.mask.shape[0]
    if chunk <= 0:
        words = captions.mask.shape[1]
        chunk = captions_at_once(images.mask.size * words, devices)
        if kind == "pair":
            longest = max(images.mask.shape[1], words)
            per_caption = images.mask.shape[0] * longest * images.tokens.shape[-1]
            chunk = max(1, devices * _NUMBERS_PER_BLOCK // max(per_caption, 1))
        chunk = min(count, chunk)

    @jax.checkpoint
    def block(part: Embeddings) -> jax.Array:
        over_captions = jax.vmap(score, in_axes=(None, 0))
        return jax.vmap(over_captions, in_axes=(0, None))(images, part)

    if chunk >= count:
        return block(captions)
    scores = jax.lax.map(block, jax.tree.map(lambda x: split_rows(x, chunk), captions))
    return jnp.moveaxis(scores, 0, 1).reshape(images.mask.shape[0], -1)[:, :count]


def captions_at_once(numbers: int, devices: int = 1) -> int:
    """Captions of a block, each of which has so many similarities on all devices together."""
    share = _CPU_SHARE if jax.default_backend() == "cpu" else 1
    return max(1, devices * _NUMBERS_PER_BLOCK // (share * max(numbers, 1)))


def split_rows(x: jax.Array, size: int) -> jax.Array:
    """[N, ...] -> [blocks, size, ...], the last block filled up with zeros."""
    blocks = -(-x.shape[0] // size)
    padded = jnp.pad(x, [(0, blocks * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return padded.reshape((blocks, size, *x.shape[1:]))


def draw_candidates(
    key: jax.Array, pooled: jax.Array, positives: jax.Array, count: int, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Negatives that are worth a costly score.

    They are drawn with chances proportional to exp(pooled / temperature): any at first, hard ones
    once the cheap scores know them. The hardest alone, from the first step on, teach nothing.

    Args:
      pooled: [B, B] cheap scores, as of the pooled vectors.
      positives: [B, B] bool; drawn only where a row or column has too few negatives.
      count: negatives of each image and of each caption.

    Returns:
      int32 [B, count] captions for each image, and images for each caption.
    """
    size = pooled.shape[0]
    # The largest sums with Gumbel noise are a draw without replacement (Kool et al., ICML 2019).
    noisy = pooled[None] / temperature + jax.random.gumbel(key, (2, size, size))
    noisy = jnp.where(positives[None], -jnp.inf, noisy)
    top = lambda values: jax.lax.top_k(values, min(count, size - 1))[1]
    return top(noisy[0]), top(noisy[1].T)


def candidate_scores(
    score: PairScorer,
    images: Embeddings,
    captions: Embeddings,
    candidates: tuple[jax.Array, jax.Array],
    devices: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Scores of each of B pairs and of each item with its candidates, and of no other pair.

    Each image meets its captions and each caption its images: the batch axis stays the outer one,
    so that devices share the work, and what depends on that item alone is computed once. Blocks
    are recomputed in the backward pass, not stored.

    Args:
      score: scorer of one pair.
      images, captions: B each; row i of both is a pair.
      candidates: of `draw_candidates`.
      devices: among which the rows are split, evenly.

    Returns:
      scores [B, B], 0 where a pair was not scored; bool [B, B], where it was.
    """
    size = images.mask.shape[0]
    own = jnp.arange(size)[:, None]
    of_images = jnp.concatenate([own, candidates[0]], axis=1)

    def block(score: PairScorer, part: tuple[Embeddings, jax.Array], pool: Embeddings) -> jax.Array:
        items, index = part
        chosen = jax.tree.map(lambda x: x[index], pool)
        return jax.vmap(jax.vmap(score, in_axes=(None, 0)))(items, chosen)

    longest = max(images.mask.shape[1], captions.mask.shape[1])
    numbers = of_images.size * longest * images.tokens.shape[-1]
    # Every part has rows on every device.
    possible = [p for p in range(1, size // devices + 1) if size % (p * devices) == 0]
    parts = next((p for p in possible if numbers <= p * devices * _NUMBERS_PER_BLOCK), possible[-1])
    turned = lambda caption, image: score(image, caption)
    by_image = map_in_parts(lambda x: block(score, x, captions), (images, of_images), parts)
    by_caption = map_in_parts(lambda x: block(turned, x, images), (captions, candidates[1]), parts)
    total, times = jnp.zeros((size, size), by_image.dtype), jnp.zeros((size, size))
    for rows, columns, values in (
        (own, of_images, by_image),
        (candidates[1], own, by_caption),
    ):
        total = total.at[rows, columns].add(values)
        times = times.at[rows, columns].add(1.0)
    # A pair that was drawn from both sides counts once.
    return total / jnp.maximum(times, 1), times > 0


def map_in_parts(function: Callable[[Any], Any], inputs: Any, parts: int) -> Any:
    """function(inputs) for a function that treats rows alike, one part of the rows at a time.

    Args:
      function: tree of arrays [B / parts, ...] -> tree of arrays [B / parts, ...]; what it computes
        on the way is computed again in the backward pass instead of being stored.
      inputs: tree of arrays [B, ...].
      parts: divides B; 1 calls the function as it is.
    """
    if parts == 1:
        return function(inputs)
    # Part p has the rows p, p + parts, ...: rows stay on the device that has them.
    split = lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
    out = jax.lax.map(jax.checkpoint(function), jax.tree.map(split, inputs))
    return jax.tree.map(join, out)
