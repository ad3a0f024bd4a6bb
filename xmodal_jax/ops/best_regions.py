"""Alignment scores of all pairs with a gradient of their own, for words that take the best region.

The forward pass remembers which region was the best one of each word, a byte, and the backward pass
gathers: three matrix products in all, where `alignment.score_matrix`, which computes its blocks
again, has four, and reads the similarities a few times more. The scores are the same.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from xmodal_jax.errors import UserError
from xmodal_jax.ops import fused_alignment
from xmodal_jax.ops.alignment import captions_at_once, split_rows
from xmodal_jax.ops.embeddings import Embeddings, without_padding

MODES = ("MrSw", "MrAVGw")
_ROWS, _WHOLE = PartitionSpec("data"), PartitionSpec()


class _How(NamedTuple):
    """How scores are computed; see `best_region_scores`."""

    fused: bool
    interpret: bool
    chunk: int
    mesh: Mesh | None


def best_region_scores(
    images: Embeddings,
    captions: Embeddings,
    *,
    mode: str,
    fill_zero: bool = False,
    chunk: int = 0,
    mesh: Mesh | None = None,
    fused: bool = False,
    interpret: bool | None = None,
) -> jax.Array:
    """Scores [I, C] of all images with all captions, at least float32.

    Where two regions are equally good for a word, the first one gets the gradient.

    Args:
      images: I images; captions: C captions. Tokens of 16 bits are summed in float32.
      mode, fill_zero: as of `alignment_score`; one of MODES.
      chunk: captions of a block; 0 chooses it as `score_matrix` does.
      mesh: over whose axis "data" the images are split; I is a multiple of its size. Each device
        scores its own images with all captions.
      fused: by the kernel of `fused_alignment`.
      interpret: whether to interpret the kernel; by default where there is no TPU.

    Raises:
      UserError: another mode, or images that the kernel has no room for.
    """
    check_mode(mode)
    if interpret is None:
        interpret = jax.default_backend() != "tpu"
    regions = without_padding(images.tokens, images.mask)
    words = without_padding(captions.tokens, captions.mask)
    dtype = jnp.result_type(regions, words)
    # What a masked region counts as: it loses, unless there is no other.
    found = jnp.any(images.mask, axis=1, keepdims=True)
    outside = jnp.where(found, 0.0 if fill_zero else -jnp.inf, 0.0)
    fill = jnp.where(images.mask, 1.0, outside).astype(jnp.float32)
    valid = captions.mask.astype(jnp.float32)
    # One device needs no talk of several.
    how = _How(fused, interpret, chunk, mesh if mesh is not None and mesh.size > 1 else None)
    scores = _scores(how, regions.astype(dtype), words.astype(dtype), fill, valid)
    if mode == "MrAVGw":
        scores = scores / jnp.maximum(jnp.sum(captions.mask, axis=1), 1)[None, :]
    return scores


def check_mode(mode: str) -> None:
    """Raises a UserError for an alignment mode that is not one of MODES."""
    if mode not in MODES:
        raise UserError(
            f"scorer='fused' has no alignment mode {mode!r}, only {' and '.join(MODES)}; use auto"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(
    how: _How, regions: jax.Array, words: jax.Array, fill: jax.Array, valid: jax.Array
) -> jax.Array:
    """regions [I, R, D], words [C, W, D], fill [I, R], valid [C, W] -> [I, C].

    fill: positive for regions that count, for others what they are taken for instead.
    """
    return _find(how, regions, words, fill, valid, save=False)[0]


def _forward(
    how: _How, regions: jax.Array, words: jax.Array, fill: jax.Array, valid: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    scores, best = _find(how, regions, words, fill, valid, save=True)
    return scores, (regions, words, valid, best)


def _backward(
    how: _How, saved: tuple[jax.Array, ...], slope: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    gather: Callable[..., tuple[jax.Array, jax.Array]] = functools.partial(_gather, how)
    if how.mesh is not None:
        # By hand, and not by XLA, so that the words' gradients are summed over devices only once.
        gather = jax.shard_map(
            gather,
            mesh=how.mesh,
            in_specs=(_ROWS, _WHOLE, _WHOLE, PartitionSpec(None, "data"), _ROWS),
            out_specs=(_ROWS, _WHOLE),
            check_vma=False,
        )
    of_regions, of_words = gather(*saved, slope)
    regions, words, *_ = saved
    return of_regions.astype(regions.dtype), of_words.astype(words.dtype), None, None


_scores.defvjp(_forward, _backward)


def _gather(
    how: _How,
    regions: jax.Array,
    words: jax.Array,
    valid: jax.Array,
    best: jax.Array,
    slope: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of regions and words, as products with a matrix of zeros and slopes."""
    number = jnp.arange(regions.shape[1], dtype=best.dtype)[None, None, None]

    def block(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        words, valid, best, slope = part  # [c, W, D], [c, W], [c, W, I], [c, I]
        slopes = slope[:, None, :] * valid[:, :, None].astype(slope.dtype)
        chosen = jnp.where(best[..., None] == number, slopes[..., None], 0.0)  # [c, W, I, R]
        product = functools.partial(jnp.einsum, preferred_element_type=total.dtype)
        total += product("cwir,cwd->ird", chosen, words)
        return total, product("cwir,ird->cwd", chosen, regions)

    parts = _blocks(how, regions, words, valid, jnp.moveaxis(best, 2, 0), slope.T)
    start = jnp.zeros(regions.shape, slope.dtype)
    of_regions, of_words = jax.lax.scan(block, start, parts)
    of_words = _joined(of_words, words.shape[0])
    return of_regions, of_words if how.mesh is None else jax.lax.psum(of_words, "data")


def _find(how: _How, *arrays: jax.Array, save: bool) -> tuple[jax.Array, ...]:
    """Scores [I, C], and with `save` the best region [W, I, C] of each word."""
    find = functools.partial(_find_in_blocks, how, save=save)
    if how.fused:
        find = functools.partial(fused_alignment.run, interpret=how.interpret, save=save)
    if how.mesh is None:
        return find(*arrays)
    # XLA could not split a kernel by itself.
    return jax.shard_map(
        find,
        mesh=how.mesh,
        in_specs=(_ROWS, _WHOLE, _ROWS, _WHOLE),
        out_specs=(_ROWS, PartitionSpec(None, "data"))[: 1 + save],
        check_vma=False,
    )(*arrays)


def _find_in_blocks(
    how: _How,
    regions: jax.Array,
    words: jax.Array,
    fill: jax.Array,
    valid: jax.Array,
    *,
    save: bool,
) -> tuple[jax.Array, ...]:
    wide = jnp.promote_types(regions.dtype, jnp.float32)
    outside = fill.astype(wide)[None, None]

    def block(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        words, valid = part
        similar = jnp.einsum("cwd,ird->cwir", words, regions, preferred_element_type=wide)
        similar = jnp.where(outside > 0, similar, outside)
        best = jnp.max(similar, axis=3)
        scores = jnp.sum(jnp.where(valid[:, :, None] > 0, best, 0.0), axis=1)
        if not save:
            return (scores,)
        number = jax.lax.broadcasted_iota(jnp.int32, similar.shape, 3)
        last = regions.shape[1] - 1
        first = jnp.min(jnp.where(similar == best[..., None], number, last), axis=3)
        return scores, first.astype(fused_alignment.number_type(last))

    found = jax.lax.map(block, _blocks(how, regions, words, valid))
    scores, *best = (_joined(x, words.shape[0]) for x in found)
    return scores.T, *(jnp.moveaxis(x, 0, 2) for x in best)


def _blocks(how: _How, regions: jax.Array, *by_caption: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays [C, ...], the words first, as [blocks, c, ...]."""
    captions, length = by_caption[0].shape[:2]
    size = how.chunk or captions_at_once(regions.shape[0] * regions.shape[1] * length)
    return tuple(split_rows(x, min(captions, size)) for x in by_caption)


def _joined(x: jax.Array, count: int) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])[:count]
