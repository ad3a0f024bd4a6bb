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
from xmodal_jax.errors import UserError
from xmodal_jax.models.batch import IMAGE_FIELDS, TEXT_FIELDS
from xmodal_jax.ops.alignment import (
    PairScorer,
    draw_candidates,
    pair_scores,
    pooled_score,
    score_matrix,
)
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.train_state import Params, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def pair_scorer(model: nn.Module, params: Params) -> PairScorer:
    """The model's score of one image with one caption as a function of embeddings only."""
    return lambda image, caption: model.apply({"params": params}, image, caption, method="score")


def teacher_scorer(model: nn.Module, params: Params) -> PairScorer:
    """The score that teaches the model's own while it is trained; see `loss.distill_weight`."""
    if not hasattr(model, "teacher"):
        raise UserError(
            f"loss.distill_weight needs a model with a teacher, such as tern_distilled; "
            f"{type(model).__name__} has none, set it to 0"
        )
    return lambda image, caption: model.apply({"params": params}, image, caption, method="teacher")


def encode_in_parts(
    encode: Callable[[Batch, jax.Array], Embeddings], batch: Batch, key: jax.Array, parts: int
) -> Embeddings:
    """Embeddings of a batch, of which one part's activations are held at a time (GradCache).

    The backward pass encodes each part again; what follows sees all embeddings at once, so that
    negatives come from the whole batch (Gao et al., RepL4NLP 2021).

    Args:
      encode: (part of the batch, key) -> its embeddings.
      batch: arrays [B, ...].
      key: each part gets its own.
      parts: divides B.
    """
    if parts == 1:
        return encode(batch, key)
    # Part p has the rows p, p + parts, ...: rows stay on the device that has them.
    split = lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
    inputs = (jax.tree.map(split, batch), jax.random.split(key, parts))
    return jax.tree.map(join, jax.lax.map(jax.checkpoint(lambda part: encode(*part)), inputs))


def make_loss_fn(
    model: nn.Module, config: Any, mask_id: int
) -> Callable[[Params, Batch, jax.Array, jax.Array], jax.Array]:
    """(parameters, batch, step, key) -> loss, with dropout and augmentation."""
    loss = losses.make_loss(config.loss)
    noise = dict(config.augment)

    def loss_fn(params: Params, batch: Batch, step: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 4)
        batch = augment(keys[0], batch, mask_id=mask_id, **noise)
        parts = config.train.encode_parts

        def encode(fields: tuple[str, ...], method: str, key: jax.Array) -> Embeddings:
            one = lambda part, key: model.apply(
                {"params": params}, part, False, method=method, rngs={"dropout": key}
            )
            return encode_in_parts(one, {k: batch[k] for k in fields if k in batch}, key, parts)

        images = encode(IMAGE_FIELDS, "encode_image", keys[1])
        captions = encode(TEXT_FIELDS, "encode_text", keys[2])
        positives = losses.positive_pairs(batch["image_id"], config.loss.positives)
        matrix = lambda score, kind: score_matrix(
            score, images, captions, chunk=config.loss.chunk, kind=kind
        )
        score, count = pair_scorer(model, params), config.loss.candidates
        total = jnp.zeros(())
        if config.loss.pooled_weight > 0:
            pooled = matrix(pooled_score, "vector")
            total += config.loss.pooled_weight * loss(pooled, positives, step)
        if count > 0:
            fixed = jax.lax.stop_gradient(pooled)
            chosen = draw_candidates(keys[3], fixed, positives, count, config.loss.temperature)
            size = positives.shape[0]
            scores = pair_scores(score, images, captions, chosen, size * (2 * count + 1))
            # A pair that was not scored is no negative.
            total += loss(scores, positives | ~chosen, step)
        else:
            scores = matrix(score, model.kind)
            total += loss(scores, positives, step)
        if config.loss.distill_weight > 0:
            teacher = matrix(teacher_scorer(model, params), "tokens")
            total += loss(teacher, positives, step)
            total += config.loss.distill_weight * losses.listwise_distillation(
                scores,
                teacher,
                temperature=config.loss.distill_temperature,
                teacher_temperature=config.loss.teacher_temperature,
            )
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
