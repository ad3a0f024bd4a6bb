"""Optax chain from the configuration: clipping, Adam(W), schedule, per-path rates, frozen parts.

Paths are those of the parameter tree joined by slashes, e.g. `bert/layer_0/mlp_in/kernel`, and are
matched by `re.search`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from xmodal_jax.errors import UserError

Params = Any


def _paths(params: Params) -> Params:
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({path: path for path in flat}, sep="/")


def _check_rules(params: Params, rules: tuple[str, ...], field: str) -> None:
    paths = traverse_util.flatten_dict(params, sep="/")
    for rule in rules:
        try:
            re.compile(rule)
        except re.error as error:
            raise UserError(f"{field} rule {rule!r} is no regular expression: {error}") from error
        if not any(re.search(rule, path) for path in paths):
            roots = ", ".join(sorted({path.split("/")[0] for path in paths}))
            raise UserError(
                f"{field} rule {rule!r} matches no parameter; parameters start with {roots}"
            )


def frozen_mask(params: Params, frozen: tuple[str, ...]) -> Params:
    """True for the leaves whose path matches one of the regular expressions."""
    _check_rules(params, frozen, "optimizer.frozen")
    return jax.tree.map(lambda path: any(re.search(r, path) for r in frozen), _paths(params))


def learning_rate(config: Any, total_steps: int) -> optax.Schedule:
    """The schedule of `config.optimizer`: step -> learning rate.

    kind `step` multiplies by decay_factor at each of decay_steps; `cosine` falls to 0 at
    total_steps; `constant` stays. All of them are multiplied by a linear warm-up
    min(1, (step + 2) / warmup_steps), the form that pytorch_warmup gives the TERAN code.
    """
    c = config
    if c.schedule == "constant":
        base = optax.constant_schedule(c.learning_rate)
    elif c.schedule == "step":
        scales = {int(step): c.decay_factor for step in c.decay_steps}
        base = optax.piecewise_constant_schedule(c.learning_rate, scales)
    elif c.schedule == "cosine":
        base = optax.cosine_decay_schedule(c.learning_rate, max(total_steps, 1))
    else:
        raise UserError(
            f"optimizer.schedule={c.schedule!r} is not known; use constant, step or cosine"
        )
    if c.warmup_steps <= 0:
        return base
    return lambda step: base(step) * jnp.minimum(1.0, (step + 2) / c.warmup_steps)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales updates by min(1, max_norm / (norm + 1e-6)).

    torch.nn.utils.clip_grad_norm_ adds that 1e-6 and optax does not; with the published recipe
    clipping is active in every step, so that the difference would show.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scale_by_path(multipliers: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies each update by the factor of the first rule that matches its path."""

    def factor(path: str) -> float:
        return next((m for rule, m in multipliers if re.search(rule, path)), 1.0)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factors = jax.tree.map(factor, _paths(params))
        is_masked = lambda x: isinstance(x, optax.MaskedNode)
        scaled = jax.tree.map(
            lambda u, f: u if is_masked(u) else u * f, updates, factors, is_leaf=is_masked
        )
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(
    config: Any, params: Params, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The transformation for `params` and the schedule it follows.

    Args:
      config: the section `optimizer` of the configuration.
      params: the parameters, or their shapes.
      total_steps: length of training, for the cosine schedule.

    Raises:
      UserError: a rule matches no parameter, or a kind is not known.
    """
    multipliers = tuple((str(rule), float(m)) for rule, m in config.multipliers)
    _check_rules(params, tuple(rule for rule, _ in multipliers), "optimizer.multipliers")
    schedule = learning_rate(config, total_steps)
    steps = [clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    steps.append(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon))
    if config.weight_decay > 0:
        # By name: biases of attention have two axes. Biases and norms are not decayed.
        decayed = lambda tree: jax.tree.map(
            lambda path: path.split("/")[-1] in ("kernel", "embedding"), _paths(tree)
        )
        steps.append(optax.add_decayed_weights(config.weight_decay, decayed))
    if multipliers:
        steps.append(_scale_by_path(multipliers))
    steps.append(optax.scale_by_learning_rate(schedule))
    tx = optax.chain(*steps)
    if config.frozen:
        mask = frozen_mask(params, tuple(config.frozen))
        labels = jax.tree.map(lambda frozen: "frozen" if frozen else "trained", mask)
        tx = optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, labels)
    return tx, schedule
