"""Poolings of one set at a time against loops over its valid tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from xmodal_jax.errors import UserError
from xmodal_jax.models.pooling import POOLINGS, Pooling, position_codes

N, D = 6, 4
# Full, a prefix, holes, one token.
MASKS = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 0]])
MASKS = MASKS.astype(bool)
ORDERED = ("first", "gru", "last")  # what depends on the order of the tokens
KINDS = [(kind, True) for kind in POOLINGS] + [("mean", False)]
every_kind = pytest.mark.parametrize(("kind", "cls_slot"), KINDS)


def tokens(seed=0):
    return np.random.default_rng(seed).normal(size=(len(MASKS), N, D))


def build(kind, cls_slot=True):
    """The jitted pooling (params, x, mask) and random parameters."""
    module = Pooling(kind, jnp.float64, cls_slot)
    params = oracles.random_params(module, jnp.asarray(tokens()), jnp.asarray(MASKS))
    return jax.jit(lambda p, x, mask: module.apply({"params": p}, x, mask)), params


def gpo_weights(p, count):
    """Weights of the places of a sorted set, from its size alone."""
    codes = np.zeros((count, 32))
    for place in range(count):
        for i in range(16):
            angle = place / 10_000 ** (2 * i / 32)
            codes[place, 2 * i : 2 * i + 2] = np.sin(angle), np.cos(angle)
    forward, backward = oracles.gru(p["forward"], codes), oracles.gru(p["backward"], codes[::-1])
    both = [(f + b) / 2 for f, b in zip(forward, backward[::-1], strict=True)]
    return oracles.softmax(np.array([oracles.dense(p["weight"], h)[0] for h in both]) / 0.1)


def loop_pool(kind, p, x, mask, cls_slot):
    """The definition; x [N, D] and mask [N] are those of one item."""
    valid = [x[n] for n in range(len(x)) if mask[n]]
    width = x.shape[1]
    if kind == "first":
        return x[0]
    if kind == "last":
        return valid[-1]
    if kind == "mean":
        valid = [x[n] for n in range(len(x)) if mask[n] and not (cls_slot and n == 0)]
        return sum(valid, np.zeros(width)) / max(len(valid), 1)
    if kind == "sum":
        return sum(valid)
    if kind == "sum-and-map":
        return oracles.mlp(p["map"], sum(valid))
    if kind == "gated":
        gates = [oracles.sigmoid(oracles.mlp(p["gate"], v)) for v in valid]
        return sum(g * oracles.mlp(p["node"], v) for g, v in zip(gates, valid, strict=True))
    if kind == "gru":
        return oracles.gru(p["gru"], valid)[-1]
    if kind == "gpo":
        weights = gpo_weights(p["gpo"], len(valid))
        columns = [sorted((v[d] for v in valid), reverse=True) for d in range(width)]
        return np.array([sum(w * v for w, v in zip(weights, c, strict=True)) for c in columns])
    p = p["attention"]
    whole = np.tanh(oracles.dense(p["global"], sum(valid) / len(valid)))
    local = [np.tanh(oracles.dense(p["local"], v)) for v in valid]
    weights = oracles.softmax(np.array([oracles.dense(p["weight"], u * whole)[0] for u in local]))
    return sum(w * v for w, v in zip(weights, valid, strict=True))


@every_kind
def test_pooling_equals_loops(kind, cls_slot, x64):
    x, (pool, params) = tokens(), build(kind, cls_slot)
    expected = [loop_pool(kind, params, *item, cls_slot) for item in zip(x, MASKS, strict=True)]
    ours = pool(params, jnp.asarray(x), jnp.asarray(MASKS))
    np.testing.assert_allclose(ours, expected, atol=1e-9)


@every_kind
def test_masked_tokens_may_hold_anything(kind, cls_slot, x64):
    pool, params = build(kind, cls_slot)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(len(MASKS), D)))
    loss = lambda p, a: jnp.sum(target * pool(p, a["x"], jnp.asarray(MASKS)))
    oracles.assert_masks_hide(loss, params, {"x": tokens()}, {"x": MASKS})


@pytest.mark.parametrize("kind", [k for k in POOLINGS if k not in ORDERED])
def test_order_does_not_matter(kind, x64):
    x, (pool, params) = tokens(), build(kind, cls_slot=False)
    order = np.array([3, 0, 5, 1, 4, 2])
    both = (pool(params, jnp.asarray(x[:, o]), jnp.asarray(MASKS[:, o])) for o in (order, range(N)))
    np.testing.assert_allclose(*both, atol=1e-12)


@pytest.mark.parametrize("kind", [k for k in POOLINGS if k not in ("first", "sum-and-map")])
def test_the_empty_set_gives_zeros_and_finite_gradients(kind, x64):
    pool, params = build(kind)
    none = jnp.zeros(MASKS.shape, bool)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(len(MASKS), D)))
    loss = lambda p, x: jnp.sum(target * pool(p, x, none))
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, jnp.asarray(tokens()))
    assert value == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_mean_pooling_by_hand():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    mask = jnp.array([[True, True, True, False], [True, True, False, False]])
    pooled = Pooling("mean").apply({}, x, mask)
    # The CLS slot, position 0, is not counted.
    np.testing.assert_allclose(pooled[0], (x[0, 1] + x[0, 2]) / 2, atol=1e-6)
    np.testing.assert_allclose(pooled[1], x[1, 1], atol=1e-6)
    pooled = Pooling("mean", cls_slot=False).apply({}, x, mask)
    np.testing.assert_allclose(pooled[1], (x[1, 0] + x[1, 1]) / 2, atol=1e-6)


def test_position_codes_by_hand():
    codes = position_codes(3, 4)
    np.testing.assert_allclose(codes[0], [0, 1, 0, 1], atol=1e-12)
    angles = [2, 2 / 100]
    np.testing.assert_allclose(codes[2, 0::2], np.sin(angles), atol=1e-7)
    np.testing.assert_allclose(codes[2, 1::2], np.cos(angles), atol=1e-7)


def test_unknown_names_are_listed():
    with pytest.raises(UserError, match=f"model.pooling='max' is not one of {', '.join(POOLINGS)}"):
        Pooling("max").apply({}, jnp.ones((1, 2, 3)), jnp.ones((1, 2), bool))
