"""Intervals and tests: small cases by enumeration and by hand, large ones against theory."""

import itertools

import numpy as np
import pytest

from xmodal_jax.metrics import statistics

EXACT = dict(rel=0, abs=1e-12)


def one_figure(values, images=None, fold=None):
    images = np.arange(len(values)) if images is None else np.asarray(images)
    fold = np.zeros(images.max() + 1, int) if fold is None else np.asarray(fold)
    return statistics.clustered([np.asarray(values, float)], [images], fold)


def p_value(first, second, images=None, **options):
    values = [one_figure(x, images).contributions() for x in (first, second)]
    return statistics.paired_tests(values[1] - values[0], **options)


def test_a_figure_is_the_mean_of_the_means_of_the_folds():
    data = one_figure([1, 2, 3, 10, 20], [0, 0, 1, 2, 3], [0, 0, 1, 1])
    assert data.means() == pytest.approx([(2 + 15) / 2], **EXACT)
    assert data.weights()[:, 0] == pytest.approx([1 / 6, 1 / 6, 1 / 4, 1 / 4], **EXACT)


def test_images_are_drawn_with_all_of_their_queries():
    # Three images with 1, 2 and 3 queries: of the 27 draws each gives a known mean.
    values, images = [6, 1, 3, 0, 0, 9], [0, 1, 1, 2, 2, 2]
    by_image = {0: [6], 1: [1, 3], 2: [0, 0, 9]}
    every = [
        np.mean(np.concatenate([by_image[k] for k in draw]))
        for draw in itertools.product(range(3), repeat=3)
    ]
    drawn = statistics.bootstrap(one_figure(values, images), samples=20_000)[:, 0]
    assert set(np.round(drawn, 9)) == set(np.round(every, 9))
    assert drawn.mean() == pytest.approx(np.mean(every), abs=0.03)
    for level in (0.1, 0.5, 0.9):
        share = np.mean(drawn <= np.quantile(every, level))
        assert share == pytest.approx(np.mean(every <= np.quantile(every, level)), abs=0.02)


def test_the_interval_has_the_width_that_theory_gives():
    rng = np.random.default_rng(0)
    hits = 100.0 * (rng.random(2000) < 0.3)
    drawn = statistics.bootstrap(one_figure(hits))
    low, high = statistics.interval(drawn)
    error = 1.96 * hits.std() / np.sqrt(2000)
    assert low[0] == pytest.approx(hits.mean() - error, abs=0.1 * error)
    assert high[0] == pytest.approx(hits.mean() + error, abs=0.1 * error)
    # Five captions of an image that hit together are one observation, not five.
    clustered = one_figure(np.repeat(hits, 5), np.repeat(np.arange(2000), 5))
    np.testing.assert_allclose(statistics.bootstrap(clustered), drawn)


def test_folds_are_drawn_each_by_itself():
    values, fold = [0.0, 2.0, 10.0, 14.0], [0, 0, 1, 1]
    drawn = statistics.bootstrap(one_figure(values, fold=fold), samples=4000)[:, 0]
    every = [(a + b) / 2 for a in (0, 1, 1, 2) for b in (10, 12, 12, 14)]
    assert set(drawn) == set(every)


def test_p_values_of_few_images_are_exact():
    first, second = np.array([1.0, 5, 2, 2, 7, 3]), np.array([2.0, 4, 4, 2, 9, 6])
    differences = second - first
    seen = abs(differences.sum())
    signs = list(itertools.product((1, -1), repeat=6))
    expected = np.mean([abs(np.dot(s, differences)) >= seen - 1e-9 for s in signs])
    found = p_value(first, second)
    assert found == pytest.approx([expected], **EXACT)
    assert p_value(first, first) == [1]


def test_drawn_p_values_come_near_the_exact_ones():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.3, 1, 14)
    signs = np.array(list(itertools.product((1, -1), repeat=14)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    found = p_value(np.zeros(14), differences)
    assert found[0] == pytest.approx(exact, abs=0.01) and 0.01 < exact < 0.5


def test_drawn_p_values_are_those_of_loops_over_the_same_exchanges(monkeypatch):
    rng = np.random.default_rng(2)
    differences = rng.normal(0.1, 1, (30, 3)) * (rng.random((30, 1)) < 0.8)
    kept = differences[(differences != 0).any(axis=1)]
    assert 13 < len(kept) < 30
    drawn, sizes = np.random.default_rng(7), [70] * 7 + [10]
    shapes = [(size, len(kept)) for size in sizes]
    signs = 1 - 2 * np.concatenate([drawn.integers(0, 2, s, dtype=np.int8) for s in shapes])
    expected = []
    for own in kept.T:
        reached = [abs(sum(s * d for s, d in zip(row, own, strict=True))) for row in signs]
        expected.append((1 + sum(x >= abs(own.sum()) - 1e-9 for x in reached)) / 501)
    monkeypatch.setattr(statistics, "_BLOCK_SIGNS", 70 * len(kept))
    found = statistics.paired_tests(differences, permutations=500, seed=7)
    assert found == pytest.approx(expected, **EXACT)


def test_clear_differences_stay_significant_among_many_tests():
    # As of 12 runs by 9 figures: 66 pairs, of which those with the last run differ clearly.
    tests, clear = 66 * 9, 11 * 9
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(40, tests))
    differences[:, :clear] += 5
    corrected = statistics.holm(statistics.paired_tests(differences))
    assert np.all(corrected[:clear] < 0.05) and np.mean(corrected[clear:] < 0.05) == 0


def test_equal_runs_are_called_different_as_seldom_as_promised():
    rng = np.random.default_rng(5)
    images = np.repeat(np.arange(40), 5)
    p = []
    for seed in range(2000):
        # What both get right depends on the image far more than on the caption.
        own = np.repeat(rng.normal(size=(2, 40)), 5, axis=1) + 0.1 * rng.normal(size=(2, 200))
        p.append(p_value(*own, images, permutations=400, seed=seed)[0])
    # Three standard errors about 0.05.
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.015)


def test_holm_by_hand():
    found = statistics.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02], **EXACT)
    assert statistics.holm(np.array([0.9, 0.6])).tolist() == [1, 1]
    assert statistics.holm(np.array([0.2])).tolist() == [0.2]
