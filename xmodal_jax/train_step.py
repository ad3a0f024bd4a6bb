"""One update: augment, encode, score, loss, gradients, optimiser; jitted with donated state."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from xmodal_jax import losses
from xmodal_jax.augment import augment
from xmodal_jax.ops.alignment import PairScorer, pooled_score, score_matrix
from xmodal_jax.train_state import Params, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def pair_scorer(model: nn.Module, params: Params) -> PairScorer:
    """The model's score of one image with one caption as a function of embeddings only."""
    return lambda image, caption: model.apply({"params": params}, image, caption, method="score")


def make_loss_fn(
    model: nn.Module, config: Any, mask_id: int
) -> Callable[[Params, Batch, jax.Array, jax.Array], jax.Array]:
    """(parameters, batch, step, key) -> loss, with dropout and augmentation."""
    loss = losses.make_loss(config.loss)
    noise = dict(config.augment)

    def loss_fn(params: Params, batch: Batch, step: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        batch = augment(keys[0], batch, mask_id=mask_id, **noise)
        encode = partial(model.apply, {"params": params}, batch, False)
        images = encode(method="encode_image", rngs={"dropout": keys[1]})
        captions = encode(method="encode_text", rngs={"dropout": keys[2]})
        positives = losses.positive_pairs(batch["image_id"], config.loss.positives)
        scores = score_matrix(pair_scorer(model, params), images, captions, chunk=config.loss.chunk)
        total = loss(scores, positives, step)
        if config.loss.pooled_weight > 0:
            pooled = score_matrix(pooled_score, images, captions)
            total += config.loss.pooled_weight * loss(pooled, positives, step)
        return total

    return loss_fn


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Any,
    *,
    frozen: Params,
    mask_id: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step (state, batch) -> (state, metrics); the given state is consumed.

    Args:
      model: the model.
      tx: optimiser.
      config: the whole configuration.
      frozen: tree of bools like the parameters; True leaves get no gradient.
      mask_id: token that replaces masked words.

    A loss or gradient that is not finite leaves the state as it was but for `halted`, after which
    no step changes anything: the host may look at the metrics late and nothing is lost.
    """
    loss_fn = make_loss_fn(model, config, mask_id)

    def with_frozen(params: Params, *args: Any) -> jax.Array:
        stop = lambda p, f: jax.lax.stop_gradient(p) if f else p
        return loss_fn(jax.tree.map(stop, params, frozen), *args)

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
