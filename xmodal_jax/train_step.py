"""One update: objective, gradients, optimiser; jitted with donated state."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from xmodal_jax.objective import Batch, Objective
from xmodal_jax.train_state import Params, TrainState

Metrics = dict[str, jax.Array]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Any,
    *,
    frozen: Params,
    mask_id: int = 0,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step (state, batch) -> (state, metrics); the given state is consumed.

    Args:
      model: the model.
      tx: optimiser.
      config: the whole configuration.
      frozen: tree of bools like the parameters; True leaves get no gradient.
      mask_id: token that replaces masked words.
      mesh: over whose axis "data" the batch is split; None: one device.

    A loss or gradient that is not finite leaves the state as it was but for `halted`, after which
    no step changes anything: the host may look at the metrics late and nothing is lost.
    """
    objective = Objective(model, config, mask_id, mesh)

    def with_frozen(params: Params, *args: Any) -> jax.Array:
        stop = lambda p, f: jax.lax.stop_gradient(p) if f else p
        return objective(jax.tree.map(stop, params, frozen), *args)

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss, grads = jax.value_and_grad(with_frozen)(state.params, batch, state.step, key)
        norm = optax.tree.norm(grads)
        ok = jnp.isfinite(loss) & jnp.isfinite(norm) & ~state.halted
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new = TrainState(
            state.step + 1, optax.apply_updates(state.params, updates), opt_state, state.halted
        )
        new = jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, state)
        return dataclasses.replace(new, halted=~ok), {"loss": loss, "grad_norm": norm}

    return train_step
