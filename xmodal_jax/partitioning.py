"""Mesh, path-regex rules -> shardings, and host arrays -> global arrays.

One jitted program runs on every mesh: XLA splits it by the shardings of its arguments. The axis
"data" splits batches, the axis "model" may split parameters.
"""

import functools
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xmodal_jax.errors import UserError

Axes = tuple[str | None, ...]  # Mesh axis of each dimension.
Rules = tuple[tuple[str, Axes], ...]


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A mesh ("data", "model") over all devices; data=-1 takes what model leaves.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    count = jax.device_count()
    if data == -1:
        data = count // model
    if data * model != count:
        divisors = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise UserError(
            f"mesh.data={data} x mesh.model={model} is not the number of devices, {count}; "
            f"set mesh.data=-1 and mesh.model to one of {divisors}"
        )
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def _path(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def shardings(tree: Any, rules: Rules, mesh: Mesh, others: Rules = ()) -> Any:
    """A sharding for each leaf: that of the first rule whose regex is found in the leaf's path.

    Args:
      tree: arrays or shapes; the path of a leaf is its keys joined by slashes.
      rules: (regex, axis name or None for each dimension); leaves without a rule are replicated.
      mesh: the mesh.
      others: rules for the leaves that `rules` match not; they may find none.

    Raises:
      UserError: a rule is malformed, matches nothing, has too many axes, or its axis does not
        divide.
    """
    for rule, axes in rules:
        _check_rule(rule, axes, mesh)
    unused = {rule for rule, _ in rules}

    def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = _path(path)
        for rule, axes in (*rules, *others):
            if not re.search(rule, name) or leaf.ndim == 0:
                continue
            unused.discard(rule)
            if len(axes) > leaf.ndim:
                raise UserError(
                    f"partition rule {rule!r} names {len(axes)} axes; {name} has shape {leaf.shape}"
                )
            for size, axis in zip(leaf.shape, axes, strict=False):
                if axis is not None and size % mesh.shape[axis]:
                    raise UserError(
                        f"partition rule {rule!r} can't split {name} of shape {leaf.shape}: {size} "
                        f"is not divisible by the {mesh.shape[axis]} devices on axis {axis!r}"
                    )
            return NamedSharding(mesh, PartitionSpec(*axes))
        return NamedSharding(mesh, PartitionSpec())

    out = jax.tree_util.tree_map_with_path(leaf_sharding, tree)
    if unused:
        raise UserError(f"partition rule {sorted(unused)[0]!r} matches no parameter; correct it")
    return out


def _check_rule(rule: str, axes: Axes, mesh: Mesh) -> None:
    try:
        re.compile(rule)
    except re.error as error:
        raise UserError(f"partition rule {rule!r} is no regular expression ({error})") from None
    named = [axis for axis in axes if axis is not None]
    for axis in named:
        if axis not in mesh.shape or named.count(axis) > 1:
            raise UserError(
                f"partition rule {rule!r} has the axes {axes}; use each of "
                f"{', '.join(map(repr, mesh.shape))} once at most, and None"
            )


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises a UserError where a batch can't be split evenly over the data axis."""
    devices = mesh.shape["data"]
    if batch_size % devices:
        lower = batch_size // devices * devices
        choices = f"{lower} or {lower + devices}" if lower else f"{devices}"
        raise UserError(
            f"{field}={batch_size} is not divisible by the {devices} devices on mesh axis 'data'; "
            f"use {choices}"
        )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """int [n], ascending: the rows of a global batch that devices of this process hold."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    held = np.zeros(batch_size, bool)
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        held[index] = True
    return np.flatnonzero(held)


def put_batch(
    batch: dict[str, np.ndarray], mesh: Mesh, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """A batch as global arrays, split over the data axis.

    Args:
      batch: arrays of this process's `local_rows`, or of all rows.
      mesh: the mesh.
      batch_size: rows over all processes; by default the batch has them all.
    """
    count = len(next(iter(batch.values())))
    size = batch_size or count
    # Where a row of the global batch is in the given one.
    place = np.zeros(size, int)
    place[local_rows(mesh, size) if count < size else np.arange(size)] = np.arange(count)
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def put(values: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            rows = place[index[0]]
            return values[rows[0] : rows[-1] + 1]

        return jax.make_array_from_callback((size, *values.shape[1:]), sharding, part)

    return {name: put(values) for name, values in batch.items()}


def replicate(tree: Any, mesh: Mesh) -> Any:
    """numpy arrays, the same in every process, as global arrays that every device holds."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    put = lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index])
    return jax.tree.map(put, tree)


def fetch(tree: Any) -> Any:
    """Arrays on the devices, of any sharding, as numpy arrays in every process.

    All processes have to call it.
    """
    leaves, structure = jax.tree.flatten(tree)
    if not all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in leaves):
        leaves = _gather(leaves[0].sharding.mesh)(leaves)
    return jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])


@functools.cache
def _gather(mesh: Mesh) -> Any:
    """The function that gives every process everything; jitted once."""
    return jax.jit(lambda leaves: leaves, out_shardings=NamedSharding(mesh, PartitionSpec()))
