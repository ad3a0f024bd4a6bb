"""Ready partition rules for every model, as `config.partition` names them.

  replicated    every device has everything; the batch is split (data parallel)
  fsdp          each large array is split over "data" along its longest axis that divides, so that
                parameters and optimiser state take 1 / devices of the memory (ZeRO-3; Zhao et al.,
                VLDB 2023)
  tensor        attention heads and hidden units of MLPs are split over "model" (Shoeybi et al.,
                arXiv 1909.08053, section 3)
  fsdp+tensor   both

What does not divide stays whole: a preset fits every model and mesh. `config.partition_rules` come
before a preset's and are strict.
"""

import math
import re
from typing import Any

from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from xmodal_jax.errors import UserError
from xmodal_jax.partitioning import Rules

PRESETS = ("replicated", "fsdp", "tensor", "fsdp+tensor")

# Axis of the kernel or bias along which heads or hidden units lie.
_TENSOR_AXES = (
    (r"/attention/(query|key|value)/kernel$", 1),
    (r"/attention/(query|key|value)/bias$", 0),
    (r"/attention/out/kernel$", 0),
    (r"/mlp_in/kernel$", 1),
    (r"/mlp_in/bias$", 0),
    (r"/mlp_out/kernel$", 0),
)
_SMALL = 2**10  # Elements below which an array is not worth a collective.


def preset_rules(name: str, params: Any, mesh: Mesh) -> Rules:
    """One rule for each parameter that the preset splits, and with it its optimiser state.

    Args:
      name: of PRESETS.
      params: the parameters, or their shapes.
      mesh: the mesh.

    Raises:
      UserError: the name is not known.
    """
    if name not in PRESETS:
        raise UserError(f"partition={name!r} is not known; use {', '.join(PRESETS)}")
    rules = []
    for path, leaf in flatten_dict(params, sep="/").items():
        axes: list[str | None] = [None] * leaf.ndim
        if "tensor" in name:
            _split_units(axes, f"/{path}", leaf.shape, mesh.shape["model"])
        if "fsdp" in name and math.prod(leaf.shape) >= _SMALL:
            _split_longest(axes, leaf.shape, mesh.shape["data"])
        if any(axes):
            rules.append((f"(^|/){re.escape(path)}$", tuple(axes)))
    return tuple(rules)


def _split_units(axes: list[str | None], path: str, shape: tuple[int, ...], parts: int) -> None:
    for rule, axis in _TENSOR_AXES:
        if re.search(rule, path) and parts > 1 and shape[axis] % parts == 0:
            axes[axis] = "model"


def _split_longest(axes: list[str | None], shape: tuple[int, ...], parts: int) -> None:
    free = [k for k, axis in enumerate(axes) if axis is None and shape[k] % parts == 0]
    if free and parts > 1:
        axes[max(free, key=lambda k: shape[k])] = "data"
