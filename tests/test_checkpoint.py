"""Checkpoints under donation, and what is kept."""

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.checkpoint import Checkpointer
from xmodal_jax.train_state import TrainState


def state_of(value, size=4_000_000):
    params = {"w": jnp.full(size, value), "b": jnp.full(3, value)}
    return TrainState(jnp.int32(value), params, {"mu": params["w"] * 2}, jnp.zeros((), bool))


@jax.jit
def spoil(state):
    return jax.tree.map(lambda x: x + jnp.ones((), x.dtype) if x.dtype != bool else x, state)


def test_a_state_that_is_donated_at_once_is_saved_as_it_was(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    step = jax.jit(spoil, donate_argnums=0)
    state = state_of(7)
    shapes = jax.eval_shape(lambda: state)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    checkpointer.save(7, state)
    for _ in range(5):
        state = step(state)
    checkpointer.close()
    restored = Checkpointer(tmp_path).restore(shapes, shardings)
    jax.tree.map(np.testing.assert_array_equal, restored, state_of(7))
    assert int(state.step) == 12


def test_the_last_states_and_the_best_parameters_are_kept(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    assert checkpointer.latest_step is None and checkpointer.best == (None, float("-inf"))
    state = state_of(0, size=8)
    shapes, shardings = jax.eval_shape(lambda: state), jax.tree.map(lambda x: x.sharding, state)
    for step, rsum in ((1, 50.0), (2, 90.0), (3, None), (4, 95.0)):
        checkpointer.save(step, state_of(step, size=8))
        if rsum:
            checkpointer.save_best(step, state_of(step, size=8).params, rsum)
    checkpointer.save(4, state_of(99, size=8))  # is there already: left as it is
    checkpointer.close()
    again = Checkpointer(tmp_path, keep=2)
    assert again.latest_step == 4 and again.best == (4, 95.0)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("[0-9]*")) == ["3", "4"]
    assert [p.name for p in (tmp_path / "best").glob("[0-9]*")] == ["4"]
    step, params = again.restore_params(shapes, shardings)
    assert step == 4 and float(params["b"][0]) == 4.0
    assert int(again.restore(shapes, shardings).step) == 4


def test_without_an_evaluation_the_newest_parameters_count(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    state = state_of(5, size=8)
    checkpointer.save(5, state)
    checkpointer.close()
    shapes, shardings = jax.eval_shape(lambda: state), jax.tree.map(lambda x: x.sharding, state)
    step, params = Checkpointer(tmp_path).restore_params(shapes, shardings)
    assert step == 5 and float(params["b"][0]) == 5.0
