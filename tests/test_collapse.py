"""The warning that a hinge loss has got stuck where all pairs score the same."""

import jax.numpy as jnp
import pytest

from configs import common
from xmodal_jax import losses
from xmodal_jax.collapse import PATIENCE, CollapseWatch, collapse_level


def loss_config(**fields):
    config = common.get_config().loss
    config.update(fields)
    return config


def test_the_level_is_the_loss_of_equal_scores():
    config = loss_config(margin=0.3)
    loss = losses.make_loss(config)(jnp.full((8, 8), 0.4), jnp.eye(8, dtype=bool), jnp.int32(0))
    assert collapse_level(config, 8) == pytest.approx(float(loss), rel=1e-6)
    # The same loss on the pooled vectors is added half.
    assert collapse_level(loss_config(margin=0.3, pooled_weight=0.5), 8) == pytest.approx(7.2)
    # With all negatives, averaged, it is nearly that.
    config = loss_config(margin=0.3, sum_steps=5)
    loss = losses.make_loss(config)(jnp.zeros((128,) * 2), jnp.eye(128, dtype=bool), jnp.int32(0))
    assert collapse_level(config, 128) == pytest.approx(float(loss), rel=0.01)


@pytest.mark.parametrize(
    "fields", [dict(kind="info_nce"), dict(kind="sigmoid"), dict(distill_weight=1.0)]
)
def test_losses_without_a_level_are_not_watched(fields):
    level = collapse_level(loss_config(**fields), 8)
    assert level is None
    watch = CollapseWatch(level)
    assert not any(watch.update(3.2) for _ in range(2 * PATIENCE))


def said_at(values, level=10.0):
    """Steps, from 1, at which the watch speaks."""
    watch = CollapseWatch(level)
    return [step for step, loss in enumerate(values, 1) if watch.update(loss)]


def test_it_speaks_once_after_200_steps():
    assert PATIENCE == 200
    close = [9.95, 10.05] * 300
    assert said_at(close) == [200]
    assert said_at(close[:199]) == []
    message = next(m for m in map(CollapseWatch(10.0).update, close) if m)
    assert "stayed at 10, that of equal scores" in message and "loss.sum_steps" in message


@pytest.mark.parametrize("other", [9.8, 10.2, float("nan")])
def test_another_loss_starts_the_count_anew(other):
    assert said_at([10.0] * 199 + [other] + [10.0] * 199) == []
    assert said_at([10.0] * 199 + [other] + [10.0] * 300) == [400]
    assert said_at([10.0] * 300 + [other] + [10.0] * 300) == [200]
