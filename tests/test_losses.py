"""Losses against values computed by hand and by numpy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from xmodal_jax import losses
from xmodal_jax.errors import UserError

SCORES = np.array([[0.9, 0.8, 0.1], [0.2, 0.5, 0.4], [0.6, 0.3, 0.7]])
EYE = np.eye(3, dtype=bool)


def test_hinge_by_hand():
    # rows: 0.2 - 0.9 + 0.8 = 0.1;  0.2 - 0.5 + 0.4 = 0.1;  0.2 - 0.7 + 0.6 = 0.1
    # columns: 0.2 - 0.9 + 0.6 < 0;  0.2 - 0.5 + 0.8 = 0.5;  0.2 - 0.7 + 0.4 < 0
    assert losses.hinge_loss(SCORES, EYE) == pytest.approx(0.8, abs=1e-6)
    # with all negatives nothing is added but column 1, row 2: 0.2 - 0.5 + 0.3 = 0
    assert losses.hinge_loss(SCORES, EYE, hardest=False) == pytest.approx(0.8, abs=1e-6)
    assert losses.hinge_loss(SCORES, EYE, margin=0.0) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("hardest", [True, False])
def test_hinge_equals_loops_and_leaves_out_positives(hardest):
    rng = np.random.default_rng(0)
    scores, ids = rng.normal(size=(7, 7)), np.array([1, 2, 2, 3, 4, 1, 5])
    positives = ids[:, None] == ids[None]
    total = 0.0
    for i in range(7):
        for matrix in (scores, scores.T):
            costs = [0.0]
            for j in range(7):
                if ids[j] != ids[i]:
                    costs.append(max(0.0, 0.2 - matrix[i, i] + matrix[i, j]))
            total += max(costs) if hardest else sum(costs)
    ours = losses.hinge_loss(jnp.asarray(scores), positives, hardest=hardest)
    np.testing.assert_allclose(ours, total, rtol=1e-6)


def test_info_nce_equals_loops():
    rng = np.random.default_rng(0)
    scores, ids = rng.normal(size=(5, 5)), np.array([1, 2, 2, 3, 4])
    terms = []
    for matrix in (scores / 0.1, scores.T / 0.1):
        for i in range(5):
            kept = [j for j in range(5) if j == i or ids[j] != ids[i]]
            terms.append(np.log(np.sum(np.exp(matrix[i, kept]))) - matrix[i, i])
    ours = losses.info_nce_loss(scores, ids[:, None] == ids[None], temperature=0.1)
    np.testing.assert_allclose(ours, np.mean(terms), rtol=1e-5)


def test_info_nce_of_equal_scores_is_log_of_the_batch():
    ours = losses.info_nce_loss(jnp.ones((6, 6)), jnp.eye(6, dtype=bool))
    assert ours == pytest.approx(np.log(6), abs=1e-6)


def test_sigmoid_equals_loops():
    positives = EYE.copy()
    positives[0, 2] = True
    total = 0.0
    for i in range(3):
        for j in range(3):
            logit = SCORES[i, j] / 0.5 - 1.0
            total += np.log1p(np.exp(-logit if positives[i, j] else logit))
    ours = losses.sigmoid_loss(SCORES, positives, temperature=0.5, bias=-1.0)
    np.testing.assert_allclose(ours, total / 3, rtol=1e-6)


def test_listwise_distillation_equals_loops_and_leaves_the_teacher_alone():
    rng = np.random.default_rng(0)
    scores, teacher = rng.normal(size=(2, 4, 4))
    total = 0.0
    for ours, theirs in ((scores, teacher), (scores.T, teacher.T)):
        for i in range(4):
            chance = np.exp(theirs[i] / 0.5) / np.sum(np.exp(theirs[i] / 0.5))
            fitted = np.exp(ours[i] / 0.2) / np.sum(np.exp(ours[i] / 0.2))
            total -= sum(p * np.log(q) for p, q in zip(chance, fitted, strict=True)) / 8
    loss = lambda s, t: losses.listwise_distillation(s, t, temperature=0.2, teacher_temperature=0.5)
    value, grads = jax.value_and_grad(loss, (0, 1))(jnp.asarray(scores), jnp.asarray(teacher))
    np.testing.assert_allclose(value, total, rtol=1e-6)
    assert np.any(grads[0]) and not np.any(grads[1])
    # No gradient where the two agree.
    grad = jax.grad(loss)(jnp.asarray(teacher * 0.2), jnp.asarray(teacher * 0.5))
    np.testing.assert_allclose(grad, 0, atol=1e-6)


def test_warm_up_uses_all_negatives_first():
    config = common.get_config().loss
    config.sum_steps = 10
    loss = losses.make_loss(config)
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)))
    eye = jnp.eye(4, dtype=bool)
    early = losses.hinge_loss(scores, eye, hardest=False) / 4
    np.testing.assert_allclose(loss(scores, eye, jnp.int32(9)), early, rtol=1e-6)
    np.testing.assert_allclose(loss(scores, eye, jnp.int32(10)), losses.hinge_loss(scores, eye))


def test_a_nan_score_makes_every_loss_nan():
    scores = jnp.asarray(SCORES).at[1, 2].set(jnp.nan)
    for hardest in (True, False):
        assert np.isnan(losses.hinge_loss(scores, EYE, hardest=hardest))
    assert np.isnan(losses.info_nce_loss(scores, EYE))
    assert np.isnan(losses.sigmoid_loss(scores, EYE))


def test_tied_negatives_send_the_gradient_to_one():
    grad = jax.grad(losses.hinge_loss)(jnp.zeros((3, 3)), jnp.eye(3, dtype=bool))
    # Each of 3 rows and 3 columns: -1 on its pair, +1 on its first negative.
    np.testing.assert_array_equal(np.diagonal(grad), [-2, -2, -2])
    assert grad.sum() == 0 and set(np.unique(grad)) <= {-2.0, 0.0, 1.0, 2.0}


def test_positive_pairs():
    ids = jnp.array([3, 4, 3])
    expected = [[True, False, True], [False, True, False], [True, False, True]]
    np.testing.assert_array_equal(losses.positive_pairs(ids, "image"), expected)
    np.testing.assert_array_equal(losses.positive_pairs(ids, "diagonal"), np.eye(3, dtype=bool))


def test_unknown_kinds_are_named():
    config = common.get_config().loss
    config.kind = "triplet"
    with pytest.raises(UserError, match="loss.kind='triplet'.*info_nce"):
        losses.make_loss(config)
    with pytest.raises(UserError, match="loss.positives='all'.*diagonal"):
        losses.positive_pairs(jnp.arange(2), "all")
