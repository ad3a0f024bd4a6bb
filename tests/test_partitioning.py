"""Meshes and rules; a step on a mesh of eight devices equals the step on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from xmodal_jax import optimizer, partitioning, train_state
from xmodal_jax.errors import UserError
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import batch_spec
from xmodal_jax.train_step import make_train_step

FULLY_SHARDED = ((r"mlp_in/kernel$", ("data", "model")), (r"mlp_out/kernel$", ("model", "data")))


def tiny_config():
    config = common.get_config()
    config.data.max_regions, config.data.max_tokens = 5, 7
    config.model.text.update(num_layers=1, width=8, num_heads=2, mlp_dim=16)
    config.model.update(region_layers=1, embed_dim=8, top_layers=1, num_heads=2, mlp_dim=16)
    config.train.batch_size = 8
    config.optimizer.learning_rate = 1e-2
    return config


def random_batch(config, width=8, seed=0):
    rng = np.random.default_rng(seed)
    out = {}
    for name, s in batch_spec(config, width).items():
        if s.dtype == jnp.bool_:
            out[name] = np.ones(s.shape, bool)
        elif name == "tokens":
            out[name] = rng.integers(0, 20, s.shape).astype(np.int32)
        elif name in ("image_id", "caption_id"):
            out[name] = np.arange(s.shape[0], dtype=np.int32)
        else:
            out[name] = rng.uniform(size=s.shape).astype(s.dtype)
    return out


def run_steps(mesh, rules, steps=3):
    config = tiny_config()
    spec = batch_spec(config, 8)
    model = build_model(config.model, 8, 20)
    params = train_state.abstract_params(model, spec)
    tx, _ = optimizer.make_optimizer(config.optimizer, params, steps)
    shardings = partitioning.shardings(train_state.abstract_state(params, tx), rules, mesh)
    state = train_state.create_state(model, tx, spec, shardings, seed=0)
    frozen = optimizer.frozen_mask(params, ())
    step = make_train_step(model, tx, config, frozen=frozen)
    losses = []
    for i in range(steps):
        batch = partitioning.put_batch(random_batch(config, seed=i), mesh)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


def test_all_meshes_give_the_same_losses():
    one = jax.make_mesh(
        (1, 1),
        ("data", "model"),
        devices=jax.devices()[:1],
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    expected, _ = run_steps(one, ())
    for data, model, rules in ((8, 1, ()), (4, 2, FULLY_SHARDED), (8, 1, FULLY_SHARDED)):
        losses, state = run_steps(partitioning.make_mesh(data, model), rules)
        np.testing.assert_allclose(losses, expected, rtol=2e-5)
        kernel = state.params["bert"]["layer_0"]["mlp_in"]["kernel"]
        moment = state.opt_state[1].mu["bert"]["layer_0"]["mlp_in"]["kernel"]
        share = 8 * 16 // (8 if rules else 1)
        for array in (kernel, moment):
            assert {shard.data.size for shard in array.addressable_shards} == {share}


def test_mistakes_name_the_thing_and_the_remedy():
    with pytest.raises(UserError, match=r"mesh.data=3 x mesh.model=1.*8; set mesh.data=-1"):
        partitioning.make_mesh(3)
    mesh = partitioning.make_mesh()
    with pytest.raises(UserError, match=r"batch_size=10 is not divisible by the 8 .*use 8 or 16"):
        partitioning.check_batch_size(10, mesh, "train.batch_size")
    tree = {"dense": {"kernel": jnp.zeros((6, 8))}}
    with pytest.raises(UserError, match=r"dense/kernel of shape \(6, 8\): 6 is not divisible"):
        partitioning.shardings(tree, (("kernel", ("data",)),), mesh)
    with pytest.raises(UserError, match="'kernal' matches no parameter"):
        partitioning.shardings(tree, (("kernal", ("data",)),), mesh)
    with pytest.raises(UserError, match="names 3 axes"):
        partitioning.shardings(tree, (("kernel", (None, None, "data")),), mesh)


def test_a_loss_that_is_not_finite_changes_nothing_from_then_on():
    config = tiny_config()
    mesh = partitioning.make_mesh()
    spec = batch_spec(config, 8)
    model = build_model(config.model, 8, 20)
    params = train_state.abstract_params(model, spec)
    tx, _ = optimizer.make_optimizer(config.optimizer, params, 3)
    shardings = partitioning.shardings(train_state.abstract_state(params, tx), (), mesh)
    state = train_state.create_state(model, tx, spec, shardings, seed=0)
    before = jax.tree.map(np.asarray, state)
    step = make_train_step(model, tx, config, frozen=optimizer.frozen_mask(params, ()))
    bad = random_batch(config)
    bad["regions"][3, 2, 1] = np.nan
    state, metrics = step(state, partitioning.put_batch(bad, mesh))
    assert not np.isfinite(metrics["loss"]) and state.halted
    state, metrics = step(state, partitioning.put_batch(random_batch(config), mesh))
    assert np.isfinite(metrics["loss"]) and int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, before.params, jax.device_get(state.params))
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, jax.device_get(state.opt_state))
