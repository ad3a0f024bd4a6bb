"""The optimiser against torch (an independent implementation) and against hand-made values."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from xmodal_jax import optimizer
from xmodal_jax.errors import UserError


def section(**changes):
    config = common.get_config().optimizer
    config.update(changes)
    return config


def test_trajectory_equals_torch(x64):
    """Adam, step decay, clipping with torch's 1e-6, six updates with changing gradients."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=5)}
    targets = [{k: rng.normal(size=v.shape) for k, v in start.items()} for _ in range(6)]
    theirs = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    adam = torch.optim.Adam(theirs.values(), lr=1e-2)
    decay = torch.optim.lr_scheduler.StepLR(adam, step_size=4, gamma=0.1)
    for target in targets:
        adam.zero_grad()
        loss = sum(((theirs[k] - torch.tensor(target[k])) ** 2).sum() for k in theirs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 2.0)
        adam.step()
        decay.step()

    config = section(learning_rate=1e-2, decay_steps=(4,), clip_norm=2.0)
    params = {k: jnp.asarray(v) for k, v in start.items()}
    tx, _ = optimizer.make_optimizer(config, params, 6)
    state = tx.init(params)
    for target in targets:
        grads = {k: 2 * (params[k] - target[k]) for k in params}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for k in params:
        np.testing.assert_allclose(params[k], theirs[k].detach().numpy(), atol=1e-12)


def test_decoupled_weight_decay_equals_torch_and_spares_vectors(x64):
    torch = pytest.importorskip("torch")
    start = {"kernel": np.full((2, 2), 3.0), "bias": np.full(2, 3.0)}
    theirs = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": 0.1},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-2)
    sum((p**2).sum() for p in theirs.values()).backward()
    adam.step()
    config = section(learning_rate=1e-2, schedule="constant", weight_decay=0.1, clip_norm=0.0)
    params = {k: jnp.asarray(v) for k, v in start.items()}
    tx, _ = optimizer.make_optimizer(config, params, 1)
    updates, _ = tx.update({k: 2 * v for k, v in params.items()}, tx.init(params), params)
    for k in params:
        np.testing.assert_allclose(params[k] + updates[k], theirs[k].detach().numpy(), atol=1e-12)


def test_biases_with_two_axes_and_frozen_parts_are_not_decayed():
    attention = {"kernel": jnp.ones((2, 2, 2)), "bias": jnp.ones((2, 2))}
    params = {"query": attention, "frozen": {"kernel": jnp.ones((2, 2))}}
    config = section(
        learning_rate=1.0,
        schedule="constant",
        weight_decay=0.5,
        clip_norm=0.0,
        frozen=("^frozen",),
        multipliers=(("^query", 0.1),),
    )
    tx, _ = optimizer.make_optimizer(config, params, 1)
    nothing = {k: {n: jnp.zeros_like(v) for n, v in leaves.items()} for k, leaves in params.items()}
    updates, _ = tx.update(nothing, tx.init(params), params)
    np.testing.assert_allclose(updates["query"]["kernel"], -0.05 * np.ones((2, 2, 2)), rtol=1e-6)
    np.testing.assert_array_equal(updates["query"]["bias"], np.zeros((2, 2)))
    np.testing.assert_array_equal(updates["frozen"]["kernel"], np.zeros((2, 2)))


def test_clipping_by_hand():
    clip = optimizer.clip_by_global_norm(2.0)
    updates, _ = clip.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, optax.EmptyState())
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [1.2, 1.6], rtol=1e-6)
    small, _ = clip.update({"a": jnp.array([0.5])}, optax.EmptyState())
    assert small["a"][0] == 0.5


def test_schedules_by_hand():
    step = optimizer.learning_rate(section(learning_rate=1.0, decay_steps=(3, 5)), 10)
    np.testing.assert_allclose([step(i) for i in range(7)], [1, 1, 1, 0.1, 0.1, 0.01, 0.01], 1e-6)
    warm = optimizer.learning_rate(
        section(learning_rate=1.0, schedule="constant", warmup_steps=4), 10
    )
    np.testing.assert_allclose([warm(i) for i in range(5)], [0.5, 0.75, 1, 1, 1], 1e-6)
    cosine = optimizer.learning_rate(section(learning_rate=2.0, schedule="cosine"), 8)
    np.testing.assert_allclose([cosine(0), cosine(4), cosine(8)], [2, 1, 0], atol=1e-6)


def test_multipliers_and_frozen_parts():
    params = {"bert": {"layer_0": {"kernel": jnp.ones(2)}, "top": jnp.ones(2)}, "head": jnp.ones(2)}
    config = section(
        learning_rate=1.0,
        schedule="constant",
        clip_norm=0.0,
        multipliers=(("^bert/", 0.1),),
        frozen=("layer_0",),
    )
    tx, _ = optimizer.make_optimizer(config, params, 1)
    updates, _ = tx.update(params, tx.init(params), params)
    # Adam's first update is the sign of the gradient.
    np.testing.assert_allclose(updates["head"], [-1, -1], rtol=1e-5)
    np.testing.assert_allclose(updates["bert"]["top"], [-0.1, -0.1], rtol=1e-5)
    np.testing.assert_array_equal(updates["bert"]["layer_0"]["kernel"], [0, 0])


@pytest.mark.parametrize("change", [{"multipliers": (("bret/", 0.1),)}, {"frozen": ("bret/",)}])
def test_a_rule_that_matches_nothing_is_named(change):
    with pytest.raises(UserError, match="'bret/' matches no parameter.*bert"):
        optimizer.make_optimizer(section(**change), {"bert": {"kernel": jnp.ones(2)}}, 1)
