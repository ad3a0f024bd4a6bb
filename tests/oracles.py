"""Layers in plain numpy, without padding, of which oracles are made; and what masks must hide.

The parameters are those of a Linen module, as nested dicts.
"""

import jax
import jax.numpy as jnp
import numpy as np


def random_params(module, *args, seed=0):
    """Float64 normals in the shapes of the module's parameters, also of those that start at 0."""
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2)
    return jax.tree.map(draw, variables.get("params", {}))


def dense(p, x):
    return x @ np.asarray(p["kernel"]) + np.asarray(p.get("bias", 0.0))


def mlp(p, x):
    return dense(p["dense_out"], np.maximum(dense(p["dense_in"], x), 0))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.sum(np.exp(x))


def unit(x):
    return x / max(np.sqrt(np.sum(x**2)), 1e-12)


def layer_norm(p, x):
    """Of one vector."""
    centred = x - np.mean(x)
    gain, bias = np.asarray(p["scale"]), np.asarray(p["bias"])
    return centred / np.sqrt(np.mean(centred**2) + 1e-6) * gain + bias


def gru(p, inputs):
    """States after each of the inputs, from a state of zeros (Cho et al., 2014, flax's biases)."""
    state, states = np.zeros(p["hn"]["bias"].shape), []
    for x in inputs:
        r = sigmoid(dense(p["ir"], x) + dense(p["hr"], state))
        z = sigmoid(dense(p["iz"], x) + dense(p["hz"], state))
        n = np.tanh(dense(p["in"], x) + r * dense(p["hn"], state))
        state = (1 - z) * n + z * state
        states.append(state)
    return states


def attention(queries, contexts, smooth):
    """SCAN's weights of the contexts for each query."""
    e = np.zeros((len(queries), len(contexts)))
    for i, q in enumerate(queries):
        for j, c in enumerate(contexts):
            dot = sum(a * b for a, b in zip(q, c, strict=True))
            e[i, j] = dot if dot > 0 else 0.1 * dot
    columns = [unit(column) for column in e.T]
    return np.array([softmax(smooth * row) for row in np.transpose(columns)])


def attend(queries, contexts, smooth):
    """The attended vector of each query."""
    weights = attention(queries, contexts, smooth)
    return [sum(w * c for w, c in zip(row, contexts, strict=True)) for row in weights]


def assert_masks_hide(loss, params, arrays, masks):
    """The value of loss(params, arrays) and its gradients don't depend on what the masks hide.

    Nor on what XLA makes of them: the gradients are those of differences.

    Args:
      arrays, masks: dicts; each array has a mask of its leading axes.
    """
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

    def hidden_by(junk, arrays):
        filled = {}
        for name, x in arrays.items():
            mask = np.asarray(masks[name])
            mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
            filled[name] = jnp.asarray(np.where(mask, x, junk))
        return filled

    expected = run(params, hidden_by(0.0, arrays))
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    for junk in (1e3, np.nan):
        jax.tree.map(same, run(params, hidden_by(junk, arrays)), expected)

    assert all(np.isfinite(x).all() for x in jax.tree.leaves(expected))
    rng, step, point = np.random.default_rng(0), 1e-6, (params, hidden_by(0.0, arrays))
    way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), point)
    way = way[0], hidden_by(0.0, way[1])
    slope = sum(
        jnp.vdot(g, w) for g, w in zip(*map(jax.tree.leaves, (expected[1], way)), strict=True)
    )
    at = lambda distance: run(*jax.tree.map(lambda x, w: x + distance * w, point, way))[0]
    assert abs(slope) > 1e-3, "a test of nothing"
    np.testing.assert_allclose(slope, (at(step) - at(-step)) / (2 * step), rtol=1e-5)
