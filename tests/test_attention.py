"""Attention within a pair against loops that form every attended vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from xmodal_jax.ops.attention import (
    attended_cosines,
    attention_weights,
    pool_fragments,
    unit_over_items,
)

N, M, D = 5, 4, 3
FULL, HOLES = (np.ones(N, bool), np.ones(M, bool)), (np.arange(N) % 2 == 0, np.arange(M) > 0)
ONE = (np.arange(N) == 2, np.arange(M) == 3)
MASKS = pytest.mark.parametrize("masks", [FULL, HOLES, ONE], ids=["full", "holes", "one"])


def pair(seed=0):
    """Unit queries [N, D] and contexts [M, D]."""
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit(rng.normal(size=(N, D))), unit(rng.normal(size=(M, D)))


def run(function, queries, contexts, masks, *args):
    arrays = (jnp.asarray(x) for x in (queries, masks[0], contexts, masks[1]))
    return np.asarray(function(*arrays, *args))


@MASKS
@pytest.mark.parametrize("smooth", [4.0, 9.0])
def test_weights_and_cosines_equal_loops(masks, smooth, x64):
    queries, contexts = pair()
    valid = queries[masks[0]], contexts[masks[1]]
    weights = run(attention_weights, queries, contexts, masks, smooth)
    expected = oracles.attention(*valid, smooth)
    np.testing.assert_allclose(weights[masks[0]][:, masks[1]], expected, atol=1e-12)
    assert not weights[:, ~masks[1]].any()
    np.testing.assert_allclose(weights[~masks[0]][:, masks[1]], 1 / masks[1].sum(), atol=1e-12)
    cosines = run(attended_cosines, queries, contexts, masks, smooth)
    expected = [
        q @ v / (np.linalg.norm(q) * np.linalg.norm(v))
        for q, v in zip(valid[0], oracles.attend(*valid, smooth), strict=True)
    ]
    np.testing.assert_allclose(cosines[masks[0]], expected, atol=1e-12)
    assert not cosines[~masks[0]].any()


@pytest.mark.parametrize("sharpness", [0.0, 6.0, 20.0])
def test_pooled_fragments_equal_loops(sharpness, x64):
    values, mask = jnp.array([0.5, -0.2, 0.9, 0.1]), jnp.array([True, True, False, True])
    valid = [0.5, -0.2, 0.1]
    expected = sum(valid) / 3
    if sharpness:
        expected = np.log(sum(np.exp(sharpness * v) for v in valid)) / sharpness
    np.testing.assert_allclose(pool_fragments(values, mask, sharpness), expected, atol=1e-12)
    assert pool_fragments(values, jnp.zeros(4, bool), sharpness) == 0


def test_unit_over_items_equals_loops(x64):
    x, mask = pair()[0], HOLES[0]
    expected = np.zeros_like(x)
    for d in range(D):
        length = np.sqrt(sum(x[n, d] ** 2 for n in range(N) if mask[n]))
        for n in np.flatnonzero(mask):
            expected[n, d] = x[n, d] / length
    ours = unit_over_items(jnp.asarray(x), jnp.asarray(mask))
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def random_sum(x):
    """A scalar that depends on each entry of x."""
    return jnp.sum(x * jnp.asarray(np.random.default_rng(1).normal(size=x.shape)))


LOSSES = {
    "weights": lambda q, m, c, n: attention_weights(q, m, c, n, 9.0),
    "cosines": lambda q, m, c, n: attended_cosines(q, m, c, n, 9.0),
    "mean": lambda q, m, c, n: pool_fragments(q[:, 0], m, 0.0) + pool_fragments(c[:, 0], n, 0.0),
    "lse": lambda q, m, c, n: pool_fragments(q[:, 0], m, 6.0) + pool_fragments(c[:, 0], n, 6.0),
    "unit": lambda q, m, c, n: jnp.concatenate([unit_over_items(q, m), unit_over_items(c, n)]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_masked_items_may_hold_anything(name, x64):
    queries, contexts = pair()
    m, n = (jnp.asarray(mask) for mask in HOLES)
    loss = lambda _, a: random_sum(LOSSES[name](a["queries"], m, a["contexts"], n))
    arrays = {"queries": queries, "contexts": contexts}
    oracles.assert_masks_hide(loss, {}, arrays, {"queries": m, "contexts": n})


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_valid_gives_zeros_and_finite_gradients(name):
    queries, contexts = (jnp.asarray(x, jnp.float32) for x in pair())
    none = jnp.zeros(N, bool), jnp.zeros(M, bool)
    out = lambda q, c: LOSSES[name](q, none[0], c, none[1])
    value_and_grad = jax.value_and_grad(lambda *x: random_sum(out(*x)), (0, 1))
    value, grads = jax.jit(value_and_grad)(queries, contexts)
    assert value == 0 and all(np.isfinite(g).all() for g in grads)


def test_order_of_items_does_not_matter(x64):
    queries, contexts = pair()
    rng = np.random.default_rng(3)
    p, q = rng.permutation(N), rng.permutation(M)
    moved = queries[p], contexts[q], (HOLES[0][p], HOLES[1][q])
    weights = run(attention_weights, queries, contexts, HOLES, 9.0)
    np.testing.assert_allclose(run(attention_weights, *moved, 9.0), weights[p][:, q], atol=1e-12)
    cosines = run(attended_cosines, queries, contexts, HOLES, 9.0)
    np.testing.assert_allclose(run(attended_cosines, *moved, 9.0), cosines[p], atol=1e-12)
