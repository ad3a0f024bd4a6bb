"""The forward pass of `best_regions` as one kernel that keeps similarities on the chip.

One step of the kernel takes word w of 128 captions and all regions of some images: a product
[images * R, D] x [D, 128], the maximum over each image's regions, and the sum over words, which
stays on the chip from word to word. Nothing of size [I, C, R, W] is ever stored.

It is written for TPUs (Pallas, Mosaic), and interpreted on CPUs, for tests. Nothing chooses it by
itself: it has been compiled for TPUs, but not run on one, and XLA for TPU takes the maximum within
the product of `score_matrix`, too, as compiled programs show. For GPUs there is none: Triton's
tiles are powers of two, which pads 36 regions to 64 and makes the products nearly twice as large.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from xmodal_jax.errors import UserError

_LANES = 128  # Captions of a step: the last dimension of a TPU's tiles.
_IMAGES = (32, 16, 8)  # of a step: as many as fit; a tile of bytes has 32 rows
_MEMORY = 12 * 2**20  # Bytes of a step; a TPU core has 16 MiB of such memory at least.


def number_type(largest: int) -> Any:
    """The type of the numbers of regions: a byte where that is enough."""
    return jnp.int8 if largest <= jnp.iinfo(jnp.int8).max else jnp.int32


def run(
    regions: jax.Array,
    words: jax.Array,
    fill: jax.Array,
    valid: jax.Array,
    *,
    interpret: bool,
    save: bool,
) -> tuple[jax.Array, ...]:
    """Scores [I, C], and with `save` the best region [W, I, C] of each word.

    Args:
      regions: [I, R, D]; words: [C, W, D]; both without anything under their masks.
      fill: [I, R], positive for regions that count, for others what they are taken for instead.
      valid: [C, W], positive for words that count.
      interpret: whether to interpret the kernel, which only a TPU runs.
      save: whether to return the best regions.

    Raises:
      UserError: there is no room for such images.
    """
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
        kind = number_type(count - 1)
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
