"""The hardest-negative loss from 3 B scored pairs, against the loss of all B * B of them."""

import jax
import numpy as np
import pytest

from tests.tiny_models import (
    WIDTH,
    abstract_state,
    build,
    one_device_mesh,
    random_batch,
    run_steps,
    tiny_config,
)
from xmodal_jax import losses, partitioning, train_state
from xmodal_jax.errors import UserError
from xmodal_jax.models.batch import batch_spec
from xmodal_jax.objective import Objective

HINGE = {"loss.kind": "hinge"}


def loss_and_gradients(config, batch, step=0):
    model, tx, abstract = abstract_state(config)
    everywhere = partitioning.shardings(abstract, (), one_device_mesh())
    params = train_state.create_state(model, tx, batch_spec(config, WIDTH), everywhere, 0).params
    objective = Objective(model, config, mask_id=1)
    function = jax.jit(jax.value_and_grad(objective))
    return function(params, batch, np.int32(step), jax.random.key(0))


@pytest.mark.parametrize(
    ("variant", "changes", "step"),
    [
        ("teran", {}, 0),
        ("teran", {"loss.margin": 0.0}, 0),
        ("chan", {"loss.sum_steps": 2}, 0),
        ("chan", {"loss.sum_steps": 2}, 2),
        ("scan_t2i", {}, 0),
        ("sgr", {"loss.candidates": 0}, 0),
        pytest.param("cmsei", {"loss.candidates": 0}, 0, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_are_those_of_all_pairs(variant, changes, step):
    config = tiny_config(variant, scorer="mined", **HINGE, **changes)
    batch = random_batch(config)
    batch["image_id"][:2] = 7  # Captions of one image are no negatives of each other.
    found, gradients = loss_and_gradients(config, batch, step)
    config.scorer = "pairs"
    expected, others = loss_and_gradients(config, batch, step)
    assert expected > 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, gradients, others)


@pytest.mark.parametrize("seed", range(5))
def test_hardest_negatives_are_those_of_loops(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(6, 6)).astype(np.float32)
    positives = np.eye(6, dtype=bool) | (rng.uniform(size=(6, 6)) < 0.2)
    found = losses.hardest_negatives(scores, positives, 0.2)
    for side, matrix, same, index, violates in (
        ("images", scores, positives, found.captions, found.violates),
        ("captions", scores.T, positives.T, found.images, found.image_violates),
    ):
        for i in range(6):
            costs = {j: 0.2 + matrix[i, j] - matrix[i, i] for j in range(6) if not same[i, j]}
            best = max(costs, key=costs.get, default=None)
            assert bool(violates[i]) == (best is not None and costs[best] >= 0), side
            if violates[i]:
                assert int(index[i]) == best, side


def test_a_nan_comes_out_as_a_nan():
    scores = np.zeros((4, 4), np.float32)
    scores[1, 2] = np.nan
    assert np.isnan(losses.hinge_loss(scores, np.eye(4, dtype=bool)))


def test_what_cannot_be_mined_is_named():
    config = tiny_config("teran", scorer="mined", **{"loss.kind": "info_nce"})
    with pytest.raises(UserError, match="this one has info_nce and tokens, use auto"):
        Objective(build(config), config, mask_id=1)


def test_mined_steps_on_two_devices_are_those_of_one():
    config = tiny_config("teran", scorer="mined", **HINGE)
    types = (jax.sharding.AxisType.Auto,) * 2
    two = jax.make_mesh((2, 1), ("data", "model"), devices=jax.devices()[:2], axis_types=types)
    found, expected = (run_steps(config, mesh)[0] for mesh in (two, one_device_mesh()))
    for name in ("loss", "grad_norm"):
        ours, theirs = ([float(step[name]) for step in steps] for steps in (found, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_an_unknown_scorer_is_named():
    config = tiny_config("teran", scorer="fast")
    said = "scorer='fast' is not known; use auto or pairs or mined or fused"
    with pytest.raises(UserError, match=said):
        Objective(build(config), config, mask_id=1)
