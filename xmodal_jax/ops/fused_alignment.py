"""All alignment scores in one kernel that keeps the similarities of a pair on the chip.

One step of the kernel takes word w of 128 captions and all regions of some images: a product
[images * R, D] x [D, 128], the maximum over each image's regions, and the sum over words, which
stays on the chip from word to word. Nothing of size [I, C, R, W] is ever stored. For gradients it
also writes which region was the best one of each word, a byte, and the backward pass gathers.

It is written for TPUs (Pallas, Mosaic), and interpreted on CPUs, for tests. Nothing chooses it by
itself: it has been compiled for TPUs, but not run on one, and XLA for TPU takes the maximum within
the product of `score_matrix`, too, as compiled programs show. For GPUs there is none: Triton's
tiles are powers of two, which pads 36 regions to 64 and makes the products nearly twice as large.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from xmodal_jax.errors import UserError
from xmodal_jax.ops.alignment import captions_at_once, split_rows
from xmodal_jax.ops.embeddings import Embeddings, without_padding

MODES = ("MrSw", "MrAVGw")
_LANES = 128  # Captions of a step: the last dimension of a TPU's tiles.
_IMAGES = (32, 16, 8)  # of a step: as many as fit; a tile of bytes has 32 rows
_MEMORY = 12 * 2**20  # Bytes of a step; a TPU core has 16 MiB of such memory at least.
_BYTE = 127  # The largest number of a byte.


class _Place(NamedTuple):
    """Where the kernel runs: on the devices of a mesh's axis "data", or on one; interpreted."""

    mesh: Mesh | None
    interpret: bool


def fused_scores(
    images: Embeddings,
    captions: Embeddings,
    *,
    mode: str,
    fill_zero: bool = False,
    mesh: Mesh | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """Scores [I, C] of all images with all captions, at least float32; differentiable.

    Where two regions are equally good for a word, the first one gets the gradient.

    Args:
      images: I images; captions: C captions. Tokens of 16 bits are summed in float32.
      mode, fill_zero: as of `alignment_score`; one of MODES.
      mesh: over whose axis "data" the images are split; I is a multiple of its size.
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
    place = _Place(mesh, interpret)
    scores = _scores(place, regions.astype(dtype), words.astype(dtype), fill, valid)
    if mode == "MrAVGw":
        scores = scores / jnp.maximum(jnp.sum(captions.mask, axis=1), 1)[None, :]
    return scores


def check_mode(mode: str) -> None:
    """Raises a UserError for an alignment mode that the kernel does not compute."""
    if mode not in MODES:
        raise UserError(
            f"scorer='fused' has no alignment mode {mode!r}, only {' and '.join(MODES)}; use auto"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(
    place: _Place, regions: jax.Array, words: jax.Array, fill: jax.Array, valid: jax.Array
) -> jax.Array:
    """regions [I, R, D], words [C, W, D], fill [I, R], valid [C, W] -> [I, C].

    fill: positive for regions that count, for others what they are taken for instead.
    """
    return _on_devices(place, regions, words, fill, valid, save=False)[0]


def _forward(
    place: _Place, regions: jax.Array, words: jax.Array, fill: jax.Array, valid: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    scores, best = _on_devices(place, regions, words, fill, valid, save=True)
    return scores, (regions, words, valid, best)


def _backward(
    place: _Place, saved: tuple[jax.Array, ...], slope: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    """Gathers, as products with a matrix of zeros and slopes, for a block of captions at a time."""
    regions, words, valid, best = saved
    devices = place.mesh.shape["data"] if place.mesh else 1
    number = jnp.arange(regions.shape[1], dtype=best.dtype)[None, None, None]

    def block(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        words, valid, best, slope = part  # [c, W, D], [c, W], [c, W, I], [c, I]
        slopes = slope[:, None, :] * valid[:, :, None].astype(slope.dtype)
        chosen = jnp.where(best[..., None] == number, slopes[..., None], 0.0)  # [c, W, I, R]
        product = functools.partial(jnp.einsum, preferred_element_type=total.dtype)
        total += product("cwir,cwd->ird", chosen, words)
        return total, product("cwir,ird->cwd", chosen, regions).astype(words.dtype)

    by_caption = (words, valid, jnp.moveaxis(best, 2, 0), slope.T)
    count = words.shape[0]
    size = min(count, captions_at_once(regions.size // regions.shape[2] * words.shape[1], devices))
    start = jnp.zeros(regions.shape, slope.dtype)
    parts = jax.tree.map(lambda x: split_rows(x, size), by_caption)
    of_regions, of_words = jax.lax.scan(block, start, parts)
    of_words = of_words.reshape(-1, *words.shape[1:])[:count]
    return of_regions.astype(regions.dtype), of_words, None, None


_scores.defvjp(_forward, _backward)


def _on_devices(place: _Place, *arrays: jax.Array, save: bool) -> tuple[jax.Array, ...]:
    """Scores [I, C], and with `save` the best region [W, I, C] of each word."""
    kernel = functools.partial(_run, interpret=place.interpret, save=save)
    if place.mesh is None:
        return kernel(*arrays)
    # XLA can't split a kernel by itself: each device runs it on its own images.
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    return jax.shard_map(
        kernel,
        mesh=place.mesh,
        in_specs=(rows, everywhere, rows, everywhere),
        out_specs=(rows, PartitionSpec(None, "data"))[: 1 + save],
        check_vma=False,
    )(*arrays)


def _run(
    regions: jax.Array,
    words: jax.Array,
    fill: jax.Array,
    valid: jax.Array,
    *,
    interpret: bool,
    save: bool,
) -> tuple[jax.Array, ...]:
    """Brings the arrays into the shapes of tiles, and runs the kernel."""
    (images, count, width), (captions, length, _) = regions.shape, words.shape
    rows = _up(count, 8)
    at_once = _images_at_once(images, rows, width, regions.dtype)
    more = _up(images, at_once) - images
    regions = jnp.pad(regions, [(0, more), (0, rows - count), (0, 0)]).reshape(-1, width)
    fill = jnp.pad(fill, [(0, more), (0, rows - count)], constant_values=-jnp.inf).reshape(-1, 1)
    lanes = _up(captions, _LANES)
    words = jnp.pad(words, [(0, lanes - captions), (0, 0), (0, 0)]).swapaxes(0, 1)
    valid = jnp.pad(valid, [(0, lanes - captions), (0, 0)]).T[:, None]
    wide = jnp.promote_types(regions.dtype, jnp.float32)
    by_image = lambda last: pl.BlockSpec((at_once * rows, last), lambda i, c, w: (i, 0))
    shapes = [jax.ShapeDtypeStruct((images + more, lanes), wide)]
    specs = [pl.BlockSpec((at_once, _LANES), lambda i, c, w: (i, c))]
    if save:
        kind = jnp.int8 if count <= _BYTE else jnp.int32
        shapes.append(jax.ShapeDtypeStruct((length, images + more, lanes), kind))
        specs.append(pl.BlockSpec((1, at_once, _LANES), lambda i, c, w: (w, i, c)))
    out = pl.pallas_call(
        _kernel,
        grid=((images + more) // at_once, lanes // _LANES, length),
        in_specs=[
            by_image(width),
            pl.BlockSpec((1, _LANES, width), lambda i, c, w: (w, c, 0)),
            by_image(1),
            pl.BlockSpec((1, 1, _LANES), lambda i, c, w: (w, 0, c)),
        ],
        out_shape=shapes,
        out_specs=specs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
    )(regions, words, fill, valid)
    return tuple(x[..., :images, :captions] for x in out)


def _kernel(
    regions_ref: Any, words_ref: Any, fill_ref: Any, valid_ref: Any, scores_ref: Any, *best_ref: Any
) -> None:
    """Word w of some captions with all regions of some images; one caption to a lane."""
    images, lanes = scores_ref.shape
    rows = regions_ref.shape[0] // images
    similar = jax.lax.dot_general(
        regions_ref[...],
        words_ref[0],
        (((1,), (1,)), ((), ())),
        preferred_element_type=scores_ref.dtype,
    )
    fill = fill_ref[...].astype(similar.dtype)
    similar = jnp.where(fill > 0, similar, fill).reshape(images, rows, lanes)
    best = jnp.max(similar, axis=1)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        scores_ref[...] = jnp.zeros_like(scores_ref)

    scores_ref[...] += jnp.where(valid_ref[0] > 0, best, 0.0)
    if best_ref:
        number = jax.lax.broadcasted_iota(jnp.int32, similar.shape, 1)
        first = jnp.min(jnp.where(similar == best[:, None], number, rows), axis=1)
        best_ref[0][0] = first.astype(best_ref[0].dtype)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _images_at_once(images: int, rows: int, width: int, dtype: Any) -> int:
    """Images of a step, of which what it holds fits into the memory of a TPU core."""
    size, lanes = jnp.dtype(dtype).itemsize, _up(width, _LANES)
    for count in _IMAGES:
        # Inputs are held twice, one copy being fetched; the similarities about three times.
        held = 2 * (count * rows + _LANES) * lanes * size + 3 * 4 * count * rows * _LANES
        if held <= _MEMORY and (count == _IMAGES[-1] or count <= _up(images, _IMAGES[-1])):
            return count
    raise UserError(
        f"scorer='fused' has no room for {_IMAGES[-1]} images of {rows} regions {width} wide: they "
        f"need {held / 2**20:.0f} MiB, and a TPU core has {_MEMORY // 2**20}; use auto"
    )
