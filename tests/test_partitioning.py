"""Meshes and rules: the same training on all of them, and what the compiled step holds."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.tiny_models import abstract_state, one_device_mesh, random_batch, run_steps, tiny_config
from xmodal_jax import optimizer, partition_presets, partitioning
from xmodal_jax.errors import UserError
from xmodal_jax.partition_presets import preset_rules
from xmodal_jax.train_step import make_train_step

# Every pair of the batch is scored, in one part.
WHOLE = {"loss.candidates": 0, "train.encode_parts": 1}


@pytest.fixture(autouse=True)
def _split_small_arrays(monkeypatch):
    monkeypatch.setattr(partition_presets, "_SMALL", 16)


@pytest.mark.parametrize("variant", ["teran", pytest.param("cmsei", marks=pytest.mark.slow)])
def test_three_steps_are_the_same_on_every_mesh(variant):
    config = tiny_config(variant, **WHOLE)
    expected, state = run_steps(config, one_device_mesh())
    moments = jax.device_get(state.opt_state)
    for data, model, preset in ((8, 1, "fsdp"), (4, 2, "fsdp+tensor"), (2, 4, "tensor")):
        mesh = partitioning.make_mesh(data, model)
        rules = preset_rules(preset, state.params, mesh)
        found, other = run_steps(config, mesh, rules)
        for name in ("loss", "grad_norm"):
            ours, theirs = ([m[name] for m in metrics] for metrics in (found, expected))
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=f"{name} {preset}")
        ours, theirs = found[0]["gradients"], expected[0]["gradients"]
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs) > 0
        # The moments are sums of gradients; Adam's parameters would show little but their signs.
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
        jax.tree.map(close, jax.device_get(other.opt_state), moments)
        assert expected[0]["grad_norm"] > 1e-3


def lowered_step(variant, preset, batch_size):
    """The compiled step for 8 devices, and the state's shapes."""
    if variant == "teran":  # As it is trained on real devices.
        config = tiny_config(variant, scorer="mined", **{"loss.kind": "hinge"}, **WHOLE)
    else:
        config = tiny_config(variant, **WHOLE)
    config.train.batch_size = batch_size
    mesh = partitioning.make_mesh()
    model, tx, abstract = abstract_state(config)
    rules = preset_rules(preset, abstract.params, mesh)
    placed = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    state = jax.tree.map(placed, abstract, partitioning.shardings(abstract, rules, mesh))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    batch = {name: placed(x, rows) for name, x in random_batch(config).items()}
    frozen = optimizer.frozen_mask(abstract.params, ())
    step = make_train_step(model, tx, config, frozen=frozen, mesh=mesh)
    return step.lower(state, batch).compile(), abstract


@pytest.mark.parametrize("variant", ["teran", "cmsei"])
def test_no_device_holds_all_scores_or_the_whole_optimizer_state(variant):
    size = 56
    compiled, abstract = lowered_step(variant, "fsdp", size)
    text = compiled.as_text()
    assert re.search(rf"\[(\d+,)*{size // 8},{size}(,\d+)*\]", text) or re.search(
        rf"\[(\d+,)*{size},{size // 8}(,\d+)*\]", text
    )
    assert not re.search(rf"\[(\d+,)*{size},{size}(,\d+)*\]", text)
    state, _ = compiled.output_shardings
    split = {True: 0, False: 0}
    for leaf, sharding in zip(
        jax.tree.leaves(abstract.opt_state), jax.tree.leaves(state.opt_state), strict=True
    ):
        if leaf.size >= 64:
            split[not sharding.is_fully_replicated] += 1
    assert split[True] > 20 and not split[False]


def test_presets_split_what_divides():
    params = {
        "bert": {"layer_0": {"attention": {"query": {"kernel": jnp.zeros((12, 4, 6))}}}},
        "layer_1": {"mlp_in": {"kernel": jnp.zeros((12, 16)), "bias": jnp.zeros(16)}},
        "odd": {"kernel": jnp.zeros((5, 7))},
    }
    mesh = partitioning.make_mesh(4, 2)
    axes = lambda preset: {
        rule.removeprefix("(^|/)").removesuffix("$").replace("\\", ""): axes
        for rule, axes in preset_rules(preset, params, mesh)
    }
    query, kernel, bias = (
        "bert/layer_0/attention/query/kernel",
        "layer_1/mlp_in/kernel",
        "layer_1/mlp_in/bias",
    )
    assert axes("replicated") == {}
    assert axes("fsdp") == {
        query: ("data", None, None), kernel: (None, "data"), bias: ("data",)
    }  # fmt: skip
    assert axes("tensor") == {
        query: (None, "model", None), kernel: (None, "model"), bias: ("model",)
    }  # fmt: skip
    assert axes("fsdp+tensor") == {
        query: ("data", "model", None), kernel: ("data", "model"), bias: ("model",)
    }  # fmt: skip
    with pytest.raises(UserError, match="partition='zero' is not known; use replicated, fsdp"):
        preset_rules("zero", params, mesh)


def test_rows_of_a_batch_are_put_where_they_belong():
    mesh = partitioning.make_mesh(4, 2)
    batch = {"x": np.arange(48).reshape(8, 6), "y": np.arange(8) > 3}
    placed = partitioning.put_batch(batch, mesh)
    for name, values in batch.items():
        np.testing.assert_array_equal(placed[name], values)
        assert {shard.data.shape[0] for shard in placed[name].addressable_shards} == {2}
    assert partitioning.local_rows(mesh, 8).tolist() == list(range(8))
    np.testing.assert_array_equal(partitioning.fetch(placed)["x"], batch["x"])


def test_rules_of_ones_own_come_before_a_preset():
    config = tiny_config("teran")
    _, _, abstract = abstract_state(config)
    mesh = partitioning.make_mesh(4, 2)
    preset = preset_rules("fsdp+tensor", abstract.params, mesh)
    own = ((r"mlp_in/kernel$", (None, "data")),)
    found = partitioning.shardings(abstract, own, mesh, preset)
    layer = found.params["bert"]["layer_0"]
    assert layer["mlp_in"]["kernel"].spec == PartitionSpec(None, "data")
    assert "model" in layer["mlp_out"]["kernel"].spec
    with pytest.raises(UserError, match="'nothing' matches no parameter"):
        partitioning.shardings(abstract, (("nothing", ("data",)),), mesh, preset)


@pytest.mark.parametrize(
    ("rule", "axes", "said"),
    [
        ("kernel$", ("modl",), "has the axes ('modl',); use each of 'data', 'model' once at most"),
        ("kernel$", ("data", "data"), "has the axes ('data', 'data'); use each of"),
        ("(", ("data",), "rule '(' is no regular expression"),
    ],
)
def test_malformed_rules_are_named(rule, axes, said):
    tree = {"kernel": jax.ShapeDtypeStruct((8, 8), np.float32)}
    with pytest.raises(UserError, match=re.escape(said)):
        partitioning.shardings(tree, ((rule, axes),), partitioning.make_mesh())


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
    config = tiny_config("teran")
    mesh = partitioning.make_mesh()
    model, tx, _ = abstract_state(config)
    _, state = run_steps(config, mesh, steps=0)
    before = jax.tree.map(np.asarray, state)
    step = make_train_step(model, tx, config, frozen=optimizer.frozen_mask(state.params, ()))
    bad = random_batch(config)
    bad["regions"][3, 1, 1] = np.nan
    state, metrics = step(state, partitioning.put_batch(bad, mesh))
    assert not np.isfinite(metrics["loss"]) and state.halted
    state, metrics = step(state, partitioning.put_batch(random_batch(config), mesh))
    assert np.isfinite(metrics["loss"]) and int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, before.params, jax.device_get(state.params))
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, jax.device_get(state.opt_state))
