"""Figures of queries with equal scores, against all orders of the equal targets one by one."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.metrics import diagnostics, graded
from xmodal_jax.metrics.judgements import by_ids, of_lists, same_image
from xmodal_jax.metrics.measures import measure
from xmodal_jax.metrics.parity import parity_metrics
from xmodal_jax.metrics.placement import Placement
from xmodal_jax.metrics.rouge import rouge_relevance

EXACT = dict(rel=0, abs=1e-12)


def orders(scores):
    """Every order, best first, that the scores allow."""
    groups = [np.flatnonzero(scores == value) for value in sorted(set(scores), reverse=True)]
    for parts in itertools.product(*map(itertools.permutations, groups)):
        yield [int(item) for part in parts for item in part]


def by_definition(order, positive, relevance, listed):
    hits = [item in positive for item in order]
    precisions = [sum(hits[: k + 1]) / (k + 1) * hits[k] for k in range(min(listed, len(hits)))]
    gain = lambda items: sum(
        (2.0 ** relevance[item] - 1) / np.log2(place + 2) for place, item in enumerate(items[:25])
    )
    ideal = gain(sorted(order, key=lambda item: -relevance[item]))
    first = hits.index(True)
    return [
        first,
        1 / (first + 1),
        *(first < k for k in (1, 2, 5, 10)),
        sum(precisions) / listed,
        sum(hits[:listed]) / listed,
        gain(order) / ideal if ideal else 0.0,
    ]


@pytest.mark.parametrize("seed", range(40))
def test_equal_scores_give_the_mean_over_their_orders(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (1, 7)).astype(np.float32)
    positive = rng.choice(7, rng.integers(1, 5), replace=False)
    listed = len(positive) + int(rng.integers(0, 3))
    relevance = rng.random((1, 7)) * (rng.random((1, 7)) < 0.7)
    found = measure(scores, {"a": of_lists([0], [positive], [listed])}, {"r": relevance})
    every = [by_definition(o, positive, relevance[0], listed) for o in orders(scores[0])]
    ours = found.found["a"]
    assert [
        ours.first.rank()[0],
        ours.first.reciprocal_rank()[0],
        *(ours.first.recall(k)[0] for k in (1, 2, 5, 10)),
        ours.average_precision[0],
        ours.r_precision[0],
        found.ndcg["r"][0],
    ] == pytest.approx(np.mean(every, axis=0), **EXACT)


def test_more_equal_scores_than_ndcg_reads():
    relevance = np.arange(60, dtype=np.float64)[None] / 60
    found = measure(np.zeros((1, 60)), {}, {"r": relevance}).ndcg["r"][0]
    places = 1 / np.log2(np.arange(2, 27))
    gains = 2 ** relevance[0] - 1
    assert found == pytest.approx(
        gains.mean() * places.sum() / (np.sort(gains)[::-1][:25] * places).sum(), **EXACT
    )


def test_placements_of_many_queries_equal_the_hypergeometric_distribution():
    rng = np.random.default_rng(0)
    above, tied = rng.integers(0, 12, 300), rng.integers(1, 40, 300)
    right = rng.integers(1, np.minimum(tied, 6) + 1)
    first = Placement(above, tied, right)
    for k in (1, 5, 10):
        found = first.recall(k)
        for a, s, m, value in zip(above, tied, right, found, strict=True):
            places = min(max(int(k - a), 0), int(s))
            missed = Fraction(math.comb(int(s - m), places), math.comb(int(s), places))
            assert value == pytest.approx(float(1 - missed), **EXACT)
    for a, s, m, value in zip(above, tied, right, first.reciprocal_rank(), strict=True):
        ways = [math.comb(int(s) - 1 - j, int(m) - 1) for j in range(s - m + 1)]
        mean = sum(Fraction(n, int(a) + j + 1) for j, n in enumerate(ways)) / sum(ways)
        assert value == pytest.approx(float(mean), **EXACT)
    # As if all images were equal to a model, and a case whose numbers of orders overflow.
    assert Placement(*np.array([[0], [25_000], [5]])).recall(10)[0] == pytest.approx(
        1 - math.comb(24_995, 10) / math.comb(25_000, 10), **EXACT
    )
    assert len(Placement(*np.zeros((3, 0), int)).reciprocal_rank()) == 0


def test_a_transposed_view_measured_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(30, 90)).astype(np.float32)
    ids, own = np.arange(30), np.repeat(np.arange(30), 3)
    judged = same_image(own, ids)
    relevance = np.maximum(scores, 0)
    whole = measure(np.ascontiguousarray(scores.T), {"own": judged}, {"r": relevance.T})
    monkeypatch.setattr("xmodal_jax.metrics.measures._BLOCK_SCORES", 7 * 30)
    parts = measure(scores.T, {"own": judged}, {"r": relevance.T})
    ranks = parts.found["own"].first.rank()
    assert ranks.tolist() == whole.found["own"].first.rank().tolist()
    assert len(set(ranks.tolist())) > 3
    assert parts.ndcg["r"].tolist() == whole.ndcg["r"].tolist()
    for caption in range(90):
        assert parts.top[caption].tolist() == np.argsort(-scores[:, caption])[:10].tolist()
    np.testing.assert_array_equal(parts.top_scores, np.take_along_axis(scores.T, parts.top, axis=1))


def test_judgements_by_ids_judge_what_is_listed():
    judged = by_ids({7: [100, 300], 9: [200, 999]}, np.array([9, 8, 7]), np.array([300, 200, 100]))
    assert [(q, t.tolist(), n) for q, t, n in judged] == [(0, [1], 2), (2, [0, 2], 2)]
    with pytest.raises(UserError, match="right targets of query 7 is among the 1 targets"):
        by_ids({7: [100, 300]}, np.array([7]), np.array([5]))


def longest_common(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
            )
    return table[-1, -1]


@pytest.mark.parametrize("longest", [5, 20, 64])
def test_rouge_equals_loops(longest):
    rng = np.random.default_rng(longest)
    words = ["a", "Dog", "dog", "runs,", "red", ""]
    captions = [" ".join(rng.choice(words, rng.integers(1, longest + 1))) for _ in range(20)]
    captions[3] = " ".join(rng.choice(words, longest))
    rows = rng.permutation(np.arange(20) % 6)
    found = rouge_relevance(captions, rows, 6)
    for c, candidate in enumerate(caption.lower().split(" ") for caption in captions):
        for image in range(6):
            own = [captions[k].lower().split(" ") for k in np.flatnonzero(rows == image)]
            common = [longest_common(candidate, reference) for reference in own]
            p = max(n / len(candidate) for n in common)
            r = max(n / len(reference) for n, reference in zip(common, own, strict=True))
            value = (1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else 0.0
            assert found[c, image] == np.float32(value)
        assert found[c, rows[c]] == 1


def test_rouge_names_what_it_cannot_take():
    with pytest.raises(UserError, match="caption 1 has 65 words"):
        rouge_relevance(["a", "a " * 64 + "b"], np.array([0, 0]), 1)
    with pytest.raises(UserError, match="image 1 of the split has no caption"):
        rouge_relevance(["a"], np.array([0]), 2)


def test_relevance_files_of_the_reference(tmp_path):
    values = np.random.default_rng(0).random((6, 4)).astype(np.float32)
    values.tofile(tmp_path / "bare.npy")
    np.save(tmp_path / "whole.npy", values)
    for name in ("bare", "whole"):
        found = graded.read_relevance(tmp_path / f"{name}.npy", 6, 4)
        np.testing.assert_array_equal(found, values)
        with pytest.raises(UserError, match="holds 24 relevances, not 7 captions x 4 images"):
            graded.read_relevance(tmp_path / f"{name}.npy", 7, 4)
    values[5, 2] = -1
    values.tofile(tmp_path / "part.npy")
    with pytest.raises(UserError, match="has -1.0 for caption 5 and image 2; finish computing"):
        graded.read_relevance(tmp_path / "part.npy", 6, 4)


def test_parity_leaves_out_images_without_relevance():
    scores = np.array([[3.0, 2.0], [1.0, 4.0]])
    ids = np.arange(2)
    relevance = np.array([[0.0, 0.5], [0.0, 1.0]])  # no caption is relevant to image 0
    found = parity_metrics("i2t", scores, same_image(ids, ids), {"rouge": relevance.T})
    found |= parity_metrics("t2i", scores.T, same_image(ids, ids), {"rouge": relevance})
    order = graded.ndcg(relevance[:, 1], np.array([1, 0]))
    assert found["i2t/ndcg_rouge"] == order == 1
    # Caption 0 finds image 0 first, of no relevance, then image 1.
    assert found["t2i/ndcg_rouge"] == pytest.approx((1 / np.log2(3) + 1) / 2, **EXACT)
    assert found["i2t/r1"] == found["t2i/r1"] == 100


def test_hubness_by_hand():
    top = np.array([[0, 1], [0, 2], [0, 1], [0, 3]])
    found = diagnostics.hubness(top, 5, hubs=2)
    assert found.occurrences.tolist() == [4, 2, 1, 1, 0] and found.hubs.tolist() == [0, 1]
    assert found.never == 20
    scipy_stats = pytest.importorskip("scipy.stats")
    assert found.skewness == pytest.approx(scipy_stats.skew([4, 2, 1, 1, 0]), **EXACT)
    assert diagnostics.hubness(np.array([[0], [1]]), 2).skewness == 0


def test_length_bias_against_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 20, 200)
    found, ranks = rng.integers(0, 9, 200) + lengths // 5, rng.integers(0, 6, 200)
    hits = 100.0 * (ranks == 0)
    bias = diagnostics.length_bias(lengths, found, 1 / (ranks + 1), hits)
    assert bias.found == pytest.approx(scipy_stats.spearmanr(lengths, found)[0], **EXACT)
    assert bias.finds == pytest.approx(scipy_stats.spearmanr(lengths, 1 / (ranks + 1))[0], **EXACT)
    assert bias.counts.sum() == 200
    for low, high, recall in zip(bias.edges[:-1], bias.edges[1:], bias.recall, strict=True):
        own = ranks[(lengths >= low) & (lengths < high)]
        assert recall == pytest.approx(100 * np.mean(own == 0), **EXACT)
    constant = diagnostics.length_bias(np.full(5, 7), np.arange(5), np.ones(5), np.full(5, 100.0))
    assert constant.found == 0 and constant.recall.tolist() == [100]
