"""The first stage's codes: what they promise of products, and how near they come to the scores."""

import jax
import numpy as np
import pytest

from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval import lemur
from xmodal_jax.retrieval.first_stage import (
    FirstStage,
    automatic_stage,
    has_lapsed,
    is_trusted,
    sample_words,
)

WIDTH, CONCEPTS = 16, 40


@pytest.fixture(scope="module")
def world():
    """Images and captions about few concepts, so that there is something to learn."""
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    concepts = unit(rng.standard_normal((CONCEPTS, WIDTH)))
    about = rng.integers(0, CONCEPTS, (150, 6))
    regions = unit(concepts[about] + 0.15 * rng.standard_normal((150, 6, WIDTH)))
    said = np.stack([rng.choice(row, 4) for row in about])
    words = unit(concepts[said] + 0.15 * rng.standard_normal((150, 4, WIDTH)))
    masks = (np.arange(n) < rng.integers(2, n + 1, (150, 1)) for n in (6, 4))
    return [
        Embeddings(x.astype(np.float32), mask, np.zeros((150, 1), np.float32))
        for x, mask in zip((regions, words), masks, strict=True)
    ]


def scores(images, captions):
    """Sum over words of the best region, by loops."""
    out = np.zeros((len(images.mask), len(captions.mask)))
    for i in range(len(out)):
        regions = images.tokens[i][images.mask[i]]
        for c in range(out.shape[1]):
            words = captions.tokens[c][captions.mask[c]]
            out[i, c] = sum(max(float(np.dot(r, w)) for r in regions) for w in words)
    return out


def recall(exact, found, k, named):
    """Of the k best of each column, the share that is among the named best of the other."""
    hits = [
        len(set(np.argsort(-e)[:k]) & set(np.argsort(-f)[:named])) / k
        for e, f in zip(exact.T, found.T, strict=True)
    ]
    return float(np.mean(hits))


def test_products_of_codes_are_nearly_scores(world):
    images, captions = world
    fitted = lemur.fit(sample_words([captions, images]), features=128)
    exact = scores(images, captions)
    found = fitted.image_codes(images) @ fitted.caption_codes(captions).T
    assert np.corrcoef(exact.ravel(), found.ravel())[0, 1] > 0.97
    assert recall(exact, found, 10, 30) > 0.95
    # Chance: 30 of 150.
    assert recall(exact, np.random.default_rng(0).random(exact.shape), 10, 30) < 0.3
    # And both ways.
    assert recall(exact.T, found.T, 10, 30) > 0.95


def test_more_features_come_nearer(world):
    images, captions = world
    exact = scores(images, captions)
    errors = []
    for features in (8, 32, 128):
        fitted = lemur.fit(sample_words([captions, images]), features=features)
        found = fitted.image_codes(images) @ fitted.caption_codes(captions).T
        errors.append(np.abs(found - exact).mean())
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]


def test_codes_are_the_least_squares_of_numpy(world):
    """Weights and features multiplied: what numpy's solver predicts for the words of the fit."""
    images, captions = world
    words = sample_words([captions])
    fitted = lemur.fit(words, features=32)
    phi = np.maximum(words @ fitted.directions + fitted.offsets, 0)
    phi = np.concatenate([phi, np.ones((len(phi), 1))], 1).astype(np.float64)
    answers = np.array(
        [
            [max(float(np.dot(r, w)) for r in x[m]) for w in words]
            for x, m in zip(images.tokens[:5], images.mask[:5], strict=True)
        ]
    )
    weights, *_ = np.linalg.lstsq(phi, answers.T, rcond=None)
    found = fitted.image_codes(images)[:5] @ (phi @ fitted.whitening).T
    np.testing.assert_allclose(found, (phi @ weights).T, atol=0.02)
    # Whitened features have unit covariance.
    white = phi @ fitted.whitening
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(32), atol=0.05)


def test_int8_keeps_the_order(world):
    images, captions = world
    words = sample_words([captions, images])
    stage = FirstStage.fit("tokens", "images", images, words, 64)
    stored = stage.item_codes(images)
    assert stored["codes"].dtype == np.int8
    kept = stored["codes"] * stored["codes_scale"]
    asked = np.stack(
        [
            stage.query_code(
                jax.tree.map(lambda x, n=n: x[n : n + 1], captions),
                "captions",
            )
            for n in range(20)
        ]
    )
    exact = stage.codes.image_codes(images) @ asked.T
    assert recall(exact, kept @ asked.T, 10, 12) > 0.98


def test_a_sample_has_all_words_where_they_are_few(world):
    _, captions = world
    every = sample_words([captions])
    assert len(every) == captions.mask.sum()
    some = sample_words([captions, captions], most=50)
    assert len(some) == 50
    known = {tuple(row) for row in every.tolist()}
    assert all(tuple(row) in known for row in some.tolist())
    assert len(sample_words([])) == 0


@pytest.mark.parametrize(
    ("kind", "trusted", "measured", "count", "stage", "lapsed"),
    [
        ("tokens", True, 30_000, 20_000, "exact", False),  # few
        ("tokens", True, 30_000, 20_001, "staged", False),
        ("tokens", False, 30_000, 30_000, "exact", False),  # of low recall
        ("tokens", True, 30_000, 60_000, "staged", False),
        ("tokens", True, 30_000, 60_001, "exact", True),
        ("tokens", True, 1000, 20_000, "exact", False),
        ("tokens", True, 1000, 20_001, "exact", True),
        ("pair", True, 150, 200, "exact", False),
        ("pair", True, 150, 201, "staged", False),
        ("pair", True, 150, 301, "exact", True),
        ("pair", False, 150, 250, "exact", False),
    ],
)
def test_the_stage_is_chosen_by_size_and_trust(kind, trusted, measured, count, stage, lapsed):
    about = {"name": "x", "trusted": trusted, "items": measured}
    assert automatic_stage(kind, about, count) == stage
    assert has_lapsed(kind, about, count) == lapsed
    assert is_trusted(about, count) == (trusted and count <= 2 * measured)
    # Without a first stage, and with one that is not measured yet.
    for nothing in ({}, {"name": "x", "trusted": False}):
        assert automatic_stage(kind, nothing, count) == "exact"
        assert not has_lapsed(kind, nothing, count)
