"""Ranks and recalls against enumeration, the protocols against slices made by hand."""

import itertools

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.metrics import graded, ranking
from xmodal_jax.metrics.parts import check_finite, metrics_of_parts, parts_of
from xmodal_jax.metrics.placement import Placement


def metrics(scores, image_ids, caption_image_ids, protocol="full"):
    return metrics_of_parts(parts_of(scores, image_ids, caption_image_ids, protocol))


def enumerated_ranks(scores, positive):
    """Positions of the first positive in all orders of the tied items."""
    found = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            found.append(next(k for k, item in enumerate(order) if positive[item]))
    return np.array(found)


def test_placements_equal_enumeration_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scores = rng.integers(0, 3, size=(1, 6)).astype(float)
        ids = rng.integers(0, 2, size=6)
        if not (ids == 1).any():
            continue
        ours = ranking.placement(scores, np.array([1]), ids)
        ranks = enumerated_ranks(scores[0], ids == 1)
        assert ours.rank()[0] == pytest.approx(np.mean(ranks))
        assert ours.reciprocal_rank()[0] == pytest.approx(np.mean(1 / (ranks + 1)))
        for k in range(1, 8):
            assert ours.recall(k)[0] == pytest.approx(np.mean(ranks < k))


def test_equal_scores_give_chance_not_success():
    ids = np.arange(50)
    found = metrics(np.ones((50, 50)), ids, ids)
    assert found["i2t/r1"] == pytest.approx(2) and found["i2t/r10"] == pytest.approx(20)
    assert found["t2i/mean_rank"] == 25.5
    two = metrics(np.zeros((2, 2)), ids[:2], ids[:2])
    assert two["i2t/r1"] == two["t2i/r1"] == 50 and two["i2t/r5"] == 100


def test_summary_by_hand():
    found = ranking.summary(Placement.of_order(np.array([0, 4, 5, 9, 100, 200])))
    assert found["r1"] == pytest.approx(100 / 6)
    assert found["r5"] == pytest.approx(200 / 6)
    assert found["r10"] == pytest.approx(400 / 6)
    assert found["median_rank"] == 8 and found["mean_rank"] == 54


def test_metrics_equal_sorting():
    rng = np.random.default_rng(1)
    images, captions = np.arange(20) * 7, np.repeat(np.arange(20) * 7, 5)
    scores = rng.normal(size=(20, 100)) + 1.5 * (images[:, None] == captions)
    found = metrics(scores, images, captions)
    i2t = [
        min(np.flatnonzero(captions[np.argsort(-row)] == images[i])) for i, row in enumerate(scores)
    ]
    t2i = [list(images[np.argsort(-scores[:, c])]).index(captions[c]) for c in range(100)]
    for side, ranks in (("i2t", i2t), ("t2i", t2i)):
        for k in (1, 5, 10):
            assert found[f"{side}/r{k}"] == pytest.approx(100 * np.mean(np.array(ranks) < k))
        assert found[f"{side}/mean_rank"] == pytest.approx(np.mean(ranks) + 1)
    recalls = [v for k, v in found.items() if "/r" in k and "rank" not in k]
    assert found["rsum"] == pytest.approx(sum(recalls))


def test_five_folds_are_consecutive_and_averaged():
    rng = np.random.default_rng(2)
    images, captions = np.arange(10), np.repeat(np.arange(10), 5)
    scores = rng.normal(size=(10, 50)) + (images[:, None] == captions)
    ours = metrics(scores, images, captions, "5fold")
    parts = [
        metrics(
            scores[k : k + 2, 5 * k : 5 * k + 10], images[k : k + 2], captions[5 * k : 5 * k + 10]
        )
        for k in range(0, 10, 2)
    ]
    for name, value in ours.items():
        assert value == pytest.approx(np.mean([part[name] for part in parts]))
    with pytest.raises(ValueError, match="not 9; use full"):
        metrics(scores[:9], images[:9], captions, "5fold")


def test_folds_are_index_pairs():
    images, captions = np.array([4, 2, 9, 7, 1]), np.array([9, 4, 2, 7, 1, 4])
    found = [
        (np.arange(5)[rows].tolist(), np.arange(6)[columns].tolist())
        for rows, columns in ranking.folds(images, captions, "5fold")
    ]
    assert found == [([0], [1, 5]), ([1], [2]), ([2], [0]), ([3], [3]), ([4], [4])]
    [(rows, columns)] = ranking.folds(images, captions, "full")
    assert len(images[rows]) == 5 and len(captions[columns]) == 6
    with pytest.raises(ValueError, match="'7fold' is not known; use full or 5fold"):
        list(ranking.folds(images, captions, "7fold"))


def test_metrics_of_ranks_by_hand():
    i2t, t2i = (Placement.of_order(np.array(ranks)) for ranks in ([0, 7], [0, 0, 3, 30]))
    found = ranking.placement_metrics(i2t, t2i)
    assert [found[f"i2t/r{k}"] for k in (1, 5, 10)] == [50, 50, 100]
    assert [found[f"t2i/r{k}"] for k in (1, 5, 10)] == [50, 75, 75]
    assert found["rsum"] == 400 and found["t2i/mean_rank"] == 9.25


def test_a_score_that_is_not_finite_is_named():
    images, captions = np.arange(10) + 30, np.repeat(np.arange(10) + 30, 2)
    scores = np.zeros((10, 20), np.float32)
    # Of the second fold: images 32 and 33 with captions 4 to 7.
    scores[3, 4] = np.nan
    said = r"score of image 33 with caption 4 \(of image 32\) is nan; 1 scores are not finite"
    for protocol in ("full", "5fold"):
        parts = list(parts_of(scores, images, captions, protocol))
        for side in ("i2t", "t2i"):
            with pytest.raises(UserError, match=f"{side} {said}"):
                for part in parts:
                    if part.side == side:
                        check_finite(part)
        with pytest.raises(UserError, match=said):
            metrics_of_parts(parts)
    scores[3, 4], scores[0, 19] = 0, -np.inf
    metrics(scores, images, captions, "5fold")  # no pair of a fold
    with pytest.raises(UserError, match=r"image 30 with caption 19 \(of image 39\) is -inf"):
        metrics(scores, images, captions)


def test_a_query_without_a_positive_is_named():
    with pytest.raises(ValueError, match="query 0.*image 9"):
        ranking.placement(np.zeros((1, 2)), np.array([9]), np.array([1, 2]))


def test_ndcg_by_hand():
    relevance = np.array([0.0, 1.0, 0.5])
    gains = 2.0 ** np.array([0.5, 1.0]) - 1
    expected = (gains[0] / np.log2(2) + gains[1] / np.log2(3)) / (
        gains[1] / np.log2(2) + gains[0] / np.log2(3)
    )
    assert graded.ndcg(relevance, np.array([2, 1, 0])) == pytest.approx(expected)
    assert graded.ndcg(np.zeros(3), np.array([2, 1, 0])) == 0
