"""Similarities, and the blocks of CMSEI-R, against loops over the valid parts of one pair."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.oracles import dense, sigmoid, softmax, unit
from xmodal_jax.errors import UserError
from xmodal_jax.models import cmsei
from xmodal_jax.models.similarity import (
    AlignmentSimilarity,
    CrossAttentionSimilarity,
    DotSimilarity,
    SafSimilarity,
    SgrSimilarity,
)
from xmodal_jax.ops.embeddings import Embeddings

R, W, D, K = 5, 4, 6, 3  # regions, words, width, width of SGRAF's vectors
MASKS = (
    np.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 1, 0, 0]], bool),
    np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool),
)


def embeddings(masks=MASKS, seed=0):
    """Three images and three captions of unit vectors."""
    rng, sides = np.random.default_rng(seed), []
    for mask in masks:
        draw = lambda *shape: np.apply_along_axis(unit, -1, rng.normal(size=(*shape, D)))
        parts = (draw(*mask.shape), mask, draw(len(mask)))
        sides.append(Embeddings(*(jnp.asarray(x) for x in parts)))
    return sides


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def loop_dot(p, regions, words, image, caption):
    return image @ caption


def loop_alignment(p, regions, words, image, caption, pool):
    return pool(np.array([max(cosine(r, w) for r in regions) for w in words]))


def loop_scan(p, regions, words, image, caption, direction, smooth, pool):
    queries, contexts = (words, regions) if direction == "t2i" else (regions, words)
    attended = oracles.attend(queries, contexts, smooth)
    return pool(np.array([cosine(q, v) for q, v in zip(queries, attended, strict=True)]))


def lse(values, sharpness):
    return np.log(sum(np.exp(sharpness * v) for v in values)) / sharpness


def sgraf_vectors(p, regions, words, image, caption):
    vectors = [unit(dense(p["global"], (image - caption) ** 2))]
    for word, attended in zip(words, oracles.attend(words, regions, 9.0), strict=True):
        vectors.append(unit(dense(p["local"], (word - unit(attended)) ** 2)))
    return vectors


def loop_sgr(p, *pair):
    nodes = sgraf_vectors(p["vectors"], *pair)
    for step in range(3):
        queries, keys = ([dense(p[f"{n}_{step}"], x) for x in nodes] for n in ("query", "key"))
        new = []
        for q in queries:
            weights = softmax(np.array([q @ k for k in keys]))
            gathered = sum(w * x for w, x in zip(weights, nodes, strict=True))
            new.append(np.maximum(dense(p[f"node_{step}"], gathered), 0))
        nodes = new
    return sigmoid(dense(p["score"], nodes[0])[0])


def loop_saf(p, *pair):
    vectors = sgraf_vectors(p["vectors"], *pair)
    gates = [sigmoid(dense(p["gate"], x)[0]) for x in vectors]
    pooled = unit(sum(g * x for g, x in zip(gates, vectors, strict=True)))
    return sigmoid(dense(p["score"], pooled)[0])


def loop_interaction(p, queries, contexts, smooth):
    refined = []
    for q, attended in zip(queries, oracles.attend(queries, contexts, smooth), strict=True):
        scale, shift = dense(p["scale"], attended), dense(p["shift"], attended)
        hidden = np.maximum(dense(p["mlp_in"], q * np.tanh(scale) + shift), 0)
        refined.append(q + dense(p["mlp_out"], hidden))
    return np.array(refined)


def loop_guidance(p, parts, whole):
    gates = np.array([dense(p["map"], part) * whole for part in parts])
    for d in range(D):
        gates[:, d] = unit(gates[:, d])
    return parts * (1 + gates)


def loop_peak_mean(p, parts):
    normed = [oracles.layer_norm(p["norm"], part) for part in parts]
    mean = sum(normed) / len(normed)
    return unit(mean + np.array([max(x[d] for x in normed) for d in range(D)]))


def loop_cmsei(p, regions, words, image, caption, without="", global_weight=1.0):
    new = regions, words
    if without != "interaction":
        regions_to_words, words_to_regions = p["regions_to_words"], p["words_to_regions"]
        new = (
            loop_interaction(regions_to_words, regions, words, 4.0),
            loop_interaction(words_to_regions, words, regions, 9.0),
        )
    regions, words = new
    if without != "object_sentence":
        regions = loop_guidance(p["object_sentence_guidance"], regions, caption)
    if without != "word_image":
        words = loop_guidance(p["word_image_guidance"], words, image)
    score = loop_peak_mean(p["region_pooling"], regions) @ caption
    score += loop_peak_mean(p["word_pooling"], words) @ image
    return score + global_weight * (image @ caption)


F64 = dict(dtype=jnp.float64)
SIMILARITIES = {
    "dot": (DotSimilarity(**F64), loop_dot),
    "alignment": (AlignmentSimilarity(**F64), partial(loop_alignment, pool=np.mean)),
    "chan": (
        AlignmentSimilarity("MrLSEw", **F64),
        partial(loop_alignment, pool=lambda x: lse(x, 10) * 10),  # CHAN's is not divided
    ),
    "sgr": (SgrSimilarity(K, **F64), loop_sgr),
    "saf": (SafSimilarity(K, **F64), loop_saf),
    "cmsei": (cmsei.CmseiSimilarity(**F64), loop_cmsei),
    "cmsei-global_weight": (
        cmsei.CmseiSimilarity(global_weight=0.5, **F64),
        partial(loop_cmsei, global_weight=0.5),
    ),
}
for switch in ("interaction", "object_sentence", "word_image"):
    module = cmsei.CmseiSimilarity(**{switch: False}, **F64)
    SIMILARITIES[f"cmsei-{switch}"] = module, partial(loop_cmsei, without=switch)
for direction, smooth, sharpness in (("t2i", 9.0, 0), ("t2i", 9.0, 6), ("i2t", 4.0, 0)):
    module = CrossAttentionSimilarity(direction, smooth, sharpness, **F64)
    pool = partial(lse, sharpness=sharpness) if sharpness else np.mean
    loop = partial(loop_scan, direction=direction, smooth=smooth, pool=pool)
    SIMILARITIES[f"scan-{direction}-{sharpness}"] = module, loop
every_similarity = pytest.mark.parametrize("name", SIMILARITIES)


def build(name):
    """Scores [I, C] as a jitted function (params, images, captions), and random parameters."""
    module = SIMILARITIES[name][0]
    first = (jax.tree.map(lambda x: x[0], side) for side in embeddings())
    params = oracles.random_params(module, *first)

    def scores(params, images, captions):
        score = lambda i, c: module.apply({"params": params}, i, c)
        return jax.vmap(jax.vmap(score, in_axes=(None, 0)), in_axes=(0, None))(images, captions)

    return jax.jit(scores), params


@every_similarity
def test_scores_equal_loops_and_order_does_not_matter(name, x64):
    (images, captions), (scores, params) = embeddings(), build(name)
    expected = np.zeros((3, 3))
    for i, c in np.ndindex(3, 3):
        regions, words = (
            np.asarray(side.tokens[k])[np.asarray(side.mask[k])]
            for side, k in ((images, i), (captions, c))
        )
        pair = regions, words, np.asarray(images.pooled[i]), np.asarray(captions.pooled[c])
        expected[i, c] = SIMILARITIES[name][1](params, *pair)
    assert np.ptp(expected) > 1e-3, "a test of nothing"
    np.testing.assert_allclose(scores(params, images, captions), expected, atol=1e-10)
    rng = np.random.default_rng(1)

    def shuffled(side):
        order = rng.permutation(side.mask.shape[1])
        return side.replace(tokens=side.tokens[:, order], mask=side.mask[:, order])

    moved = scores(params, shuffled(images), shuffled(captions))
    np.testing.assert_allclose(moved, expected, atol=1e-10)


@pytest.mark.parametrize("name", ["dot", "sgr", "saf", "cmsei", "scan-t2i-6", "scan-i2t-0"])
def test_masked_parts_may_hold_anything_and_items_may_be_empty(name, x64):
    empty = np.array([[1], [1], [0]], bool)
    (images, captions), (scores, params) = embeddings([m & empty for m in MASKS]), build(name)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)))

    def loss(params, x):
        image = images.replace(tokens=x["regions"], pooled=x["image"])
        caption = captions.replace(tokens=x["words"], pooled=x["caption"])
        return jnp.sum(target * scores(params, image, caption))

    arrays = dict(regions=images.tokens, words=captions.tokens)
    arrays |= dict(image=images.pooled, caption=captions.pooled)
    masks = dict(regions=images.mask, words=captions.mask, image=np.ones(3), caption=np.ones(3))
    oracles.assert_masks_hide(loss, params, arrays, masks)


BLOCKS = {
    "interaction": cmsei.InteractiveAttention(4.0, jnp.float64),
    "guidance": cmsei.CrossLevelGuidance(jnp.float64),
    "peak-mean": cmsei.PeakMeanPooling(jnp.float64),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_cmsei_equal_loops_and_read_nothing_masked(name, x64):
    (images, captions), module = embeddings(), BLOCKS[name]
    mask, context_mask = images.mask[1], captions.mask[1]
    inputs = {
        "interaction": lambda x: (x["parts"], mask, x["contexts"], context_mask),
        "guidance": lambda x: (x["parts"], mask, x["whole"]),
        "peak-mean": lambda x: (x["parts"], mask),
    }[name]
    # Of other lengths than 1, which the blocks see after each other.
    arrays = {"parts": 2 * images.tokens[1], "contexts": 3 * captions.tokens[1]}
    arrays["whole"] = captions.pooled[1]
    params = oracles.random_params(module, *inputs(arrays))
    run = jax.jit(lambda params, x: module.apply({"params": params}, *inputs(x)))

    parts, contexts = np.asarray(arrays["parts"][mask]), np.asarray(arrays["contexts"][:2])
    expected = {
        "interaction": lambda: loop_interaction(params, parts, contexts, 4.0),
        "guidance": lambda: loop_guidance(params, parts, np.asarray(arrays["whole"])),
        "peak-mean": lambda: loop_peak_mean(params, parts),
    }[name]()
    valid = lambda out: out if name == "peak-mean" else out[np.flatnonzero(mask)]
    np.testing.assert_allclose(valid(run(params, arrays)), expected, atol=1e-12)

    target = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape))
    loss = lambda params, x: jnp.sum(target * valid(run(params, x)))
    masks = {"parts": mask, "contexts": context_mask, "whole": np.ones(D)}
    oracles.assert_masks_hide(loss, params, arrays, masks)


def test_interaction_starts_as_identity():
    images, captions = embeddings()
    inputs = images.tokens[0], images.mask[0], captions.tokens[0], captions.mask[0]
    module = cmsei.InteractiveAttention(4.0)
    start = jax.jit(module.init)(jax.random.key(0), *inputs)
    out = lambda variables: module.apply(variables, *inputs)
    np.testing.assert_array_equal(jax.jit(out)(start), inputs[0])
    grad = jax.jit(jax.grad(lambda v: jnp.sum(out(v) ** 2)))(start)["params"]
    assert np.any(grad["mlp_out"]["kernel"]), "it would stay the identity"


def test_unknown_names_are_listed():
    image, caption = (jax.tree.map(lambda x: x[0], side) for side in embeddings())
    with pytest.raises(UserError, match="similarity.direction='both' is not one of t2i, i2t"):
        CrossAttentionSimilarity("both").apply({}, image, caption)
