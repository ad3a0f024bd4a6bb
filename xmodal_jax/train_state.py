"""What training carries from step to step, and how it is made: sharded from the start."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from xmodal_jax.errors import UserError

Params = Any


@flax.struct.dataclass
class TrainState:
    """step: updates done; halted: a non-finite loss was met, nothing is updated any more."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    halted: jax.Array


def abstract_params(model: nn.Module, spec: dict[str, jax.ShapeDtypeStruct]) -> Params:
    """Shapes and types of the model's parameters, without computing them."""
    return jax.eval_shape(model.init, jax.random.key(0), _zeros_spec(spec))["params"]


def _zeros_spec(spec: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    # One example is enough to initialise from, and compiles faster.
    return {k: jax.ShapeDtypeStruct((1, *s.shape[1:]), s.dtype) for k, s in spec.items()}


def _state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jnp.zeros((), bool))


def abstract_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """Shapes of the state for (the shapes of) some parameters."""
    return jax.eval_shape(lambda p: _state(p, tx), params)


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    spec: dict[str, jax.ShapeDtypeStruct],
    shardings: TrainState,
    seed: int,
) -> TrainState:
    """A new state, each array created where its sharding puts it, never on one device first."""

    def init() -> TrainState:
        batch = {k: jnp.zeros(s.shape, s.dtype) for k, s in _zeros_spec(spec).items()}
        return _state(model.init(jax.random.key(seed), batch)["params"], tx)

    return jax.jit(init, out_shardings=shardings)()


def replace_params(state: TrainState, loaded: Params, shardings: TrainState) -> TrainState:
    """The state with those parameters replaced that the (partial) tree `loaded` of arrays has."""

    def merge(old: Any, new: Any, where: Any, name: str = "") -> Any:
        if isinstance(new, dict):
            return {
                k: merge(v, new[k], where[k], f"{name}/{k}") if k in new else v
                for k, v in old.items()
            }
        if old.shape != new.shape:
            raise UserError(
                f"{name[1:]} has shape {new.shape} in the weights and {old.shape} in the model; "
                "use the configuration the weights were made with"
            )
        return jax.device_put(jnp.asarray(new, old.dtype), where)

    params = merge(state.params, loaded, shardings.params)
    return dataclasses.replace(state, params=params)
