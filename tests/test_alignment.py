"""Pair scorers and the score matrix against numpy double loops."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from xmodal_jax.ops import alignment
from xmodal_jax.ops.alignment import (
    MODES,
    alignment_score,
    candidate_scores,
    draw_candidates,
    pooled_score,
    score_matrix,
)
from xmodal_jax.ops.embeddings import Embeddings

N, C, R, W, D = 3, 5, 4, 6, 8


def random_sets(seed=0, empty=False):
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    counts = [2, R, 3], [W, 1, 4, 0 if empty else 2, 5]
    sets = []
    for n, lengths, width in ((N, counts[0], R), (C, counts[1], W)):
        mask = np.arange(width) < np.array(lengths)[:, None]
        sets.append((unit(rng.normal(size=(n, width, D))), mask, unit(rng.normal(size=(n, D)))))
    return sets


def embeddings(arrays):
    return Embeddings(*(jnp.asarray(a) for a in arrays))


def loop_score(mode, regions, region_mask, words, word_mask):
    """The definition, without padding: only valid regions and words are looked at."""
    regions, words = regions[region_mask], words[word_mask]
    if not len(words) or not len(regions):
        return 0.0
    a = np.array([[float(r @ w) for w in words] for r in regions])
    best_for_words = sum(max(a[:, w]) for w in range(len(words)))
    best_for_regions = sum(max(row) for row in a)
    if mode == "scan-sentences":
        n = np.maximum(a, 0)
        n = n / np.maximum(np.sqrt((n**2).sum(0, keepdims=True)), 1e-12)
        total = 0.0
        for r in range(len(regions)):
            weights = np.exp(n[r]) / np.exp(n[r]).sum()
            v = sum(weights[w] * words[w] for w in range(len(words)))
            total += regions[r] @ v / (np.linalg.norm(regions[r]) * np.linalg.norm(v))
        return total
    return {
        "MrSw": best_for_words,
        "MrAVGw": best_for_words / len(words),
        "MrLSEw": np.log(sum(np.exp(max(a[:, w]) / 0.1) for w in range(len(words)))),
        "MwSr": best_for_regions,
        "symm": best_for_words + best_for_regions,
        "sum": a.sum(),
        "mean": a.mean(),
    }[mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [0, 1, 2, 5, 9])
def test_score_matrix_equals_loops(mode, chunk, x64):
    images, captions = random_sets(empty=True)
    expected = [
        [loop_score(mode, im[0], im[1], c[0], c[1]) for c in zip(*captions, strict=True)]
        for im in zip(*images, strict=True)
    ]
    score = lambda i, c: alignment_score(i, c, mode=mode)
    ours = score_matrix(score, embeddings(images), embeddings(captions), chunk=chunk)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_padding_changes_nothing(mode):
    images, captions = random_sets()
    score = lambda i, c: alignment_score(i, c, mode=mode)
    small = score_matrix(score, embeddings(images), embeddings(captions))
    pad = lambda s: (
        np.pad(s[0], [(0, 0), (0, 7), (0, 0)], constant_values=3.0),
        np.pad(s[1], [(0, 0), (0, 7)]),
        s[2],
    )
    large = score_matrix(score, embeddings(pad(images)), embeddings(pad(captions)))
    np.testing.assert_allclose(small, large, atol=1e-6)


def test_masked_tokens_may_hold_anything(x64):
    images, captions = (embeddings(s) for s in random_sets())
    targets = np.random.default_rng(1).normal(size=(len(MODES), N, C))

    def loss(_, tokens):
        pair = images.replace(tokens=tokens["image"]), captions.replace(tokens=tokens["caption"])
        total = 0.0
        for mode, target in zip(MODES, targets, strict=True):
            score = lambda i, c, mode=mode: alignment_score(i, c, mode=mode)
            total += jnp.sum(jnp.asarray(target) * score_matrix(score, *pair))
        return total

    arrays = {"image": images.tokens, "caption": captions.tokens}
    oracles.assert_masks_hide(loss, {}, arrays, {"image": images.mask, "caption": captions.mask})


def test_zero_fill_is_a_floor_beside_padding():
    tokens = jnp.array([[1.0, 0.0]])
    image = Embeddings(tokens, jnp.array([True]), tokens[0])
    words = jnp.array([[-1.0, 0.0], [0.5, 0.0]])
    caption = Embeddings(words, jnp.array([True, False]), words[0])
    assert alignment_score(image, caption, mode="MwSr") == -1
    assert alignment_score(image, caption, mode="MwSr", fill_zero=True) == 0
    assert alignment_score(image, caption, mode="mean") == -1
    assert alignment_score(image, caption, mode="mean", fill_zero=True) == -0.5


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_finite_and_equal_differences(mode, x64):
    images, captions = random_sets(seed=1, empty=True)
    image, caption = embeddings(images), embeddings(captions)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(N, C)))

    def total(tokens):
        score = lambda i, c: alignment_score(i, c, mode=mode)
        return jnp.sum(
            weights * score_matrix(score, image.replace(tokens=tokens), caption, chunk=2)
        )

    grad = jax.grad(total)(image.tokens)
    assert np.isfinite(grad).all()
    direction = jnp.asarray(np.random.default_rng(3).normal(size=grad.shape))
    step = 1e-6
    ahead, behind = (total(image.tokens + s * step * direction) for s in (1, -1))
    numeric = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(jnp.sum(grad * direction), numeric, rtol=1e-5, atol=1e-8)


def test_gradients_at_zero_vectors_are_finite():
    zeros = Embeddings(jnp.zeros((2, R, D)), jnp.ones((2, R), bool), jnp.zeros((2, D)))
    for mode in MODES:
        score = lambda i, c, mode=mode: alignment_score(i, c, mode=mode)
        total = lambda t, score=score: jnp.sum(score_matrix(score, zeros.replace(tokens=t), zeros))
        assert np.isfinite(jax.grad(total)(zeros.tokens)).all(), mode


def test_all_pairs_similarities_never_exist():
    n, chunk = 64, 8
    tokens = jax.ShapeDtypeStruct((n, 36, 16), jnp.float32)
    mask = jax.ShapeDtypeStruct((n, 36), jnp.bool_)
    sets = Embeddings(tokens, mask, jax.ShapeDtypeStruct((n, 16), jnp.float32))
    score = lambda i, c: alignment_score(i, c, mode="MrSw")
    loss = lambda i, c: jnp.sum(score_matrix(score, i, c, chunk=chunk) ** 2)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True)).lower(sets, sets).compile()
    all_pairs = n * n * 36 * 36 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < all_pairs / 2


def test_pooled_score_is_the_dot_product():
    images, captions = random_sets()
    ours = score_matrix(pooled_score, embeddings(images), embeddings(captions))
    np.testing.assert_allclose(ours, images[2] @ captions[2].T, atol=1e-6)


def test_unknown_mode_is_named():
    images, captions = random_sets()
    one = lambda s: jax.tree.map(lambda x: x[0], embeddings(s))
    with pytest.raises(ValueError, match="'max'.*MrSw"):
        alignment_score(one(images), one(captions), mode="max")


def test_bfloat16_is_accumulated_in_float32():
    images, captions = (embeddings(s) for s in random_sets())
    half = lambda e: e.replace(tokens=e.tokens.astype(jnp.bfloat16))
    score = lambda i, c: alignment_score(i, c, mode="MrSw")
    ours = score_matrix(score, half(images), half(captions))
    assert ours.dtype == jnp.float32
    exact = score_matrix(
        score,
        half(images).replace(tokens=half(images).tokens.astype("float32")),
        half(captions).replace(tokens=half(captions).tokens.astype("float32")),
    )
    np.testing.assert_allclose(ours, exact, atol=1e-6)


IDS = {"some": np.array([1, 2, 2, 3, 4, 1]), "all": np.full(6, 7)}


def candidates(ids, count, temperature, draws):
    """First-stage scores [B, B], positives [B, B], and what is drawn [draws, B, B]."""
    pooled = np.random.default_rng(0).normal(size=(6, 6))
    positives = IDS[ids][:, None] == IDS[ids][None]
    draw = lambda key: draw_candidates(
        key, jnp.asarray(pooled), jnp.asarray(positives), count, temperature
    )
    captions, images = map(
        np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), draws))
    )
    drawn = np.zeros((draws, 6, 6), bool)
    for k, i, n in np.ndindex(captions.shape):
        drawn[k, i, captions[k, i, n]] = True
        drawn[k, images[k, i, n], i] = True
    # Positives come where the negatives do not suffice; they are no negatives of the loss.
    return pooled, positives, (drawn & ~positives) | np.eye(6, dtype=bool)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("ids", IDS)
def test_candidates_at_no_temperature_are_the_hardest(ids, count):
    pooled, positives, drawn = candidates(ids, count, 1e-6, draws=2)
    chosen = {(i, i) for i in range(6)}
    for i in range(6):
        negatives = [j for j in range(6) if not positives[i, j]]
        chosen |= {(i, j) for j in sorted(negatives, key=lambda j: -pooled[i, j])[:count]}
        chosen |= {(j, i) for j in sorted(negatives, key=lambda j: -pooled[j, i])[:count]}
    for ours in drawn:
        assert {(int(i), int(j)) for i, j in np.argwhere(ours)} == chosen


def test_candidates_are_drawn_by_their_chances():
    pooled, positives, drawn = candidates("some", 1, 0.7, draws=4000)
    expected = np.eye(6)
    for i, j in np.argwhere(~positives):
        rivals = [k for k in range(6) if not positives[i, k]]
        in_row = np.exp(pooled[i, j] / 0.7) / sum(np.exp(pooled[i, k] / 0.7) for k in rivals)
        rivals = [k for k in range(6) if not positives[k, j]]
        in_column = np.exp(pooled[i, j] / 0.7) / sum(np.exp(pooled[k, j] / 0.7) for k in rivals)
        expected[i, j] = 1 - (1 - in_row) * (1 - in_column)
    np.testing.assert_allclose(drawn.mean(0), expected, atol=0.04)  # five standard deviations
    # Without replacement: every row and column gets as many as it asks for.
    _, _, drawn = candidates("some", 3, 0.7, draws=50)
    negatives = drawn & ~np.eye(6, dtype=bool)
    assert min(negatives.sum(1).min(), negatives.sum(2).min()) >= 3
    assert not drawn[:, positives & ~np.eye(6, dtype=bool)].any()


@pytest.mark.parametrize("block", [2**24, 1])
def test_candidate_scores_equal_loops_and_their_gradients(x64, monkeypatch, block):
    monkeypatch.setattr(alignment, "_NUMBERS_PER_BLOCK", block)  # in one part, and row by row
    sets = random_sets(seed=4, empty=True)
    images, captions = (embeddings(tuple(x[:N] for x in s)) for s in sets)
    # Image 0 with caption 1 is drawn from both sides, image 2 draws its own caption.
    of_images, of_captions = np.array([[1], [0], [2]]), np.array([[1], [0], [1]])
    pairs = {(0, 0), (1, 1), (2, 2), (0, 1), (1, 0), (1, 2)}
    target = jnp.asarray(np.random.default_rng(5).normal(size=(N, N)))
    score = lambda i, c: alignment_score(i, c, mode="MrSw")

    def plain(images, captions):
        scores = jnp.zeros((N, N))
        for i, j in pairs:
            pick = lambda x, k: jax.tree.map(lambda leaf: leaf[k], x)
            scores = scores.at[i, j].set(score(pick(images, i), pick(captions, j)))
        return scores

    def ours(images, captions):
        drawn = (jnp.asarray(of_images), jnp.asarray(of_captions))
        scores, scored = candidate_scores(score, images, captions, drawn)
        return jnp.where(scored, scores, 0.0)

    def result(scores):
        """Scores, and the gradients of their projection."""

        def total(i, c):
            out = scores(images.replace(tokens=i), captions.replace(tokens=c))
            return jnp.sum(target * out), out

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(images.tokens, captions.tokens)

    expected = np.zeros((N, N))
    for i, j in pairs:
        tokens_and_masks = (images.tokens[i], images.mask[i], captions.tokens[j], captions.mask[j])
        expected[i, j] = loop_score("MrSw", *map(np.asarray, tokens_and_masks))
    looped = result(plain)
    np.testing.assert_allclose(looped[1], expected, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), result(ours), looped)


def test_blocks_are_as_large_as_every_device_can_hold(monkeypatch):
    monkeypatch.setattr(alignment, "_NUMBERS_PER_BLOCK", 2 * 8 * 5 * 4)  # two captions
    monkeypatch.setattr(alignment, "_CPU_SHARE", 1)
    rng = np.random.default_rng(0)
    make = lambda rows, items: Embeddings(
        rng.normal(size=(rows, items, 3)).astype(np.float32),
        np.ones((rows, items), bool),
        np.zeros((rows, 3), np.float32),
    )
    images, captions = make(8, 5), make(16, 4)
    score = lambda i, c: alignment_score(i, c, mode="MrSw")
    for devices, blocks in ((1, 8), (4, 2), (8, 1)):
        matrix = lambda i, c, d=devices: score_matrix(score, i, c, devices=d)
        lengths = re.findall(r"\blength=(\d+)", str(jax.make_jaxpr(matrix)(images, captions)))
        assert lengths == ([str(blocks)] if blocks > 1 else [])
        np.testing.assert_allclose(
            matrix(images, captions), score_matrix(score, images, captions, chunk=16), atol=1e-5
        )


def test_devices_share_the_candidates():
    mesh = jax.make_mesh(
        (8,), ("data",), devices=jax.devices(), axis_types=(jax.sharding.AxisType.Auto,)
    )
    rng = np.random.default_rng(0)
    items = Embeddings(
        rng.normal(size=(16, 5, 32)), np.ones((16, 5), bool), rng.normal(size=(16, 32))
    )
    index = jnp.asarray(rng.integers(0, 16, (16, 3)))

    def flops(sharding):
        put = lambda tree: jax.tree.map(lambda x: jax.device_put(x, sharding), tree)
        heavy = lambda i, c: jnp.sum((i.tokens @ i.tokens.T @ i.tokens) * c.tokens)
        run = jax.jit(lambda i, c, x: candidate_scores(heavy, i, c, (x, x))[0])
        return run.lower(put(items), put(items), put(index)).compile().cost_analysis()["flops"]

    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    assert flops(split) < flops(jax.sharding.SingleDeviceSharding(jax.devices()[0])) / 4
