"""Scores by best regions, in blocks and by the interpreted kernel, against loops and pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.test_mining import loss_and_gradients
from tests.tiny_models import build, one_device_mesh, random_batch, run_steps, tiny_config
from xmodal_jax import partitioning
from xmodal_jax.errors import UserError
from xmodal_jax.objective import Objective
from xmodal_jax.ops.alignment import alignment_score, score_matrix
from xmodal_jax.ops.best_regions import best_region_scores
from xmodal_jax.ops.embeddings import Embeddings

# Images, captions, regions, words, width.
SHAPES = [(3, 5, 7, 6, 64), (9, 4, 1, 33, 64), (5, 130, 4, 1, 24), (2, 3, 36, 33, 1024)]
REAL = (128, 128, 36, 32, 1024)
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["blocks", "fused"])


def random_arrays(shape, seed=0):
    """Regions, region mask, words, word mask; with empty items, and anything under the masks."""
    images, captions, regions, words, width = shape
    rng = np.random.default_rng(seed)
    found = []
    for count, length in ((images, regions), (captions, words)):
        tokens = rng.normal(size=(count, length, width)) / np.sqrt(width)
        mask = rng.uniform(size=(count, length)) < 0.7
        mask[0], mask[1] = True, False
        tokens[~mask] = np.nan
        found += [tokens, mask]
    return found


def embeddings(arrays, dtype=None):
    regions, region_mask, words, word_mask = map(jnp.asarray, arrays)
    convert = lambda x: x if dtype is None else x.astype(dtype)
    return Embeddings(convert(regions), region_mask, None), Embeddings(
        convert(words), word_mask, None
    )


def loops(arrays, mode, fill_zero):
    regions, region_mask, words, word_mask = arrays
    found = np.zeros((len(regions), len(words)))
    for i, c in np.ndindex(*found.shape):
        if not region_mask[i].any() or not word_mask[c].any():
            continue
        for word in words[c][word_mask[c]]:
            similar = [float(region @ word) for region in regions[i][region_mask[i]]]
            # The public code fills padding with 0.
            beside = [0.0] if fill_zero and not region_mask[i].all() else []
            found[i, c] += max(similar + beside)
        if mode == "MrAVGw":
            found[i, c] /= word_mask[c].sum()
    return found


def loop_gradients(arrays, slope):
    """Of sum(slope * MrSw) by regions and by words: each word pulls its best region."""
    regions, region_mask, words, word_mask = arrays
    by_region, by_word = (np.zeros_like(x) for x in (regions, words))
    for i, c in np.ndindex(*slope.shape):
        valid = np.flatnonzero(region_mask[i])
        for w in np.flatnonzero(word_mask[c]) if len(valid) else ():
            best = valid[np.argmax([regions[i, r] @ words[c, w] for r in valid])]
            by_region[i, best] += slope[i, c] * words[c, w]
            by_word[c, w] += slope[i, c] * regions[i, best]
    return by_region, by_word


def slopes_and_value(function, images, captions, slope):
    def total(regions, words):
        scores = function(images.replace(tokens=regions), captions.replace(tokens=words))
        return jnp.sum(jnp.asarray(slope, scores.dtype) * scores), scores

    run = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    gradients, scores = run(images.tokens, captions.tokens)
    return scores, *gradients


@pytest.mark.parametrize("fill_zero", [False, True])
@pytest.mark.parametrize("mode", ["MrSw", "MrAVGw"])
@pytest.mark.parametrize("shape", SHAPES)
@FUSED
def test_scores_equal_loops(fused, shape, mode, fill_zero, x64):
    arrays = random_arrays(shape)
    options = dict(mode=mode, fill_zero=fill_zero, fused=fused, chunk=2)
    found = best_region_scores(*embeddings(arrays), **options)
    np.testing.assert_allclose(found, loops(arrays, mode, fill_zero), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@FUSED
def test_gradients_equal_loops(fused, shape, x64):
    arrays = random_arrays(shape)
    slope = np.random.default_rng(1).normal(size=shape[:2])
    ours = functools.partial(best_region_scores, mode="MrSw", fused=fused)
    _, *found = slopes_and_value(ours, *embeddings(arrays), slope)
    for ours, expected in zip(found, loop_gradients(arrays, slope), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("fill_zero", [False, True])
@pytest.mark.parametrize("mode", ["MrSw", "MrAVGw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@FUSED
def test_scores_and_gradients_equal_those_of_the_pair_scorer(fused, dtype, mode, fill_zero):
    images, captions = embeddings(random_arrays(SHAPES[0]), dtype)
    slope = np.random.default_rng(1).normal(size=SHAPES[0][:2])
    pair = functools.partial(alignment_score, mode=mode, fill_zero=fill_zero)
    plain = functools.partial(score_matrix, pair)
    ours = functools.partial(best_region_scores, mode=mode, fill_zero=fill_zero, fused=fused)
    found = slopes_and_value(ours, images, captions, slope)
    expected = slopes_and_value(plain, images, captions, slope)
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    # A gradient has the type of its tokens: one unit in the last place of bfloat16 apart at most.
    last = float(jnp.finfo(dtype).eps)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.dtype == theirs.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=2 * last, atol=1e-6
        )


@FUSED
def test_a_long_image_has_numbers_that_need_more_than_a_byte(fused, x64):
    arrays = random_arrays((2, 3, 200, 4, 8))
    ours = functools.partial(best_region_scores, mode="MrSw", fused=fused)
    slope = np.ones((2, 3))
    scores, *found = slopes_and_value(ours, *embeddings(arrays), slope)
    np.testing.assert_allclose(scores, loops(arrays, "MrSw", False), atol=1e-12)
    for ours, expected in zip(found, loop_gradients(arrays, slope), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-12)


@FUSED
def test_eight_devices_split_the_images(fused, x64):
    shape = (16, 5, 7, 6, 64)
    arrays = random_arrays(shape)
    slope = np.random.default_rng(1).normal(size=shape[:2])
    mesh = partitioning.make_mesh(4, 2)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    images, captions = embeddings(arrays)
    images = jax.tree.map(lambda x: jax.device_put(x, rows), images)
    captions = jax.tree.map(lambda x: jax.device_put(x[:4], rows), captions)
    ours = functools.partial(best_region_scores, mode="MrSw", mesh=mesh, fused=fused)
    scores, *found = slopes_and_value(ours, images, captions, slope[:, :4])
    arrays[2:] = [x[:4] for x in arrays[2:]]
    assert {shard.data.shape for shard in scores.addressable_shards} == {(4, 4)}
    np.testing.assert_allclose(scores, loops(arrays, "MrSw", False), atol=1e-12)
    for ours, expected in zip(found, loop_gradients(arrays, slope[:, :4]), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-12)


def real_inputs(dtype, batch=REAL[0]):
    _, _, regions, words, width = REAL
    tokens = [jax.ShapeDtypeStruct((batch, n, width), dtype) for n in (regions, words)]
    masks = [jax.ShapeDtypeStruct((batch, n), jnp.bool_) for n in (regions, words)]
    return tokens[0], masks[0], tokens[1], masks[1]


def value_and_gradients(regions, region_mask, words, word_mask):
    def total(regions, words):
        images = Embeddings(regions, region_mask, None)
        captions = Embeddings(words, word_mask, None)
        options = dict(mode="MrSw", fused=True, interpret=False)
        return jnp.sum(best_region_scores(images, captions, **options))

    return jax.value_and_grad(total, (0, 1))(regions, words)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_lowered_for_tpus(dtype):
    exported = jax.export.export(jax.jit(value_and_gradients), platforms=["tpu"])(
        *real_inputs(dtype)
    )
    text = exported.mlir_module()
    assert "tpu_custom_call" in text
    # What the forward pass saves: a byte for each word and image. Of all pairs' similarities none.
    assert "tensor<32x128x128xi8>" in text
    for order in ("128x128x36x32x", "128x36x128x32x", "128x32x128x36x"):
        assert order not in text


def test_a_block_of_captions_meets_all_images_at_a_time():
    regions, region_mask, words, word_mask = real_inputs("float32", batch=64)

    def total(regions, words):
        images, captions = (
            Embeddings(regions, region_mask, None),
            Embeddings(words, word_mask, None),
        )
        return jnp.sum(best_region_scores(images, captions, mode="MrSw", chunk=4) ** 2)

    region_mask, word_mask = (jnp.ones(x.shape, bool) for x in (region_mask, word_mask))
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(regions, words).compile()
    all_pairs = 64 * 64 * 36 * 32 * 4
    inputs = 64 * (36 + 32) * 1024 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < inputs + all_pairs / 4


def test_what_the_kernel_cannot_do_is_named():
    images, captions = embeddings(random_arrays(SHAPES[0]))
    with pytest.raises(UserError, match="no alignment mode 'symm', only MrSw and MrAVGw; use auto"):
        best_region_scores(images, captions, mode="symm")
    wide = embeddings(random_arrays((2, 2, 100, 2, 8192)), jnp.float32)
    with pytest.raises(
        UserError, match="no room for 8 images of 104 regions 8192 wide: .*use auto"
    ):
        best_region_scores(*wide, mode="MrSw", fused=True)


@pytest.mark.parametrize(
    ("scorer", "mode", "changes"),
    [
        ("fused", "MrSw", {"loss.kind": "hinge"}),
        ("auto", "MrAVGw", {"loss.kind": "hinge", "loss.sum_steps": 5}),
        ("auto", "MrSw", {"loss.kind": "info_nce"}),
    ],
    ids=["mined", "sum", "info_nce"],
)
def test_losses_and_their_gradients_are_those_of_pairs(scorer, mode, changes):
    config = tiny_config("teran", scorer=scorer, **{"model.alignment": mode}, **changes)
    batch = random_batch(config)
    found, gradients = loss_and_gradients(config, batch)
    config.scorer = "pairs"
    expected, others = loss_and_gradients(config, batch)
    assert expected > 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, gradients, others)


@pytest.mark.slow
def test_steps_on_a_mesh_are_those_of_pairs_on_one_device():
    config = tiny_config("teran", scorer="fused", **{"loss.kind": "info_nce"})
    found, _ = run_steps(config, partitioning.make_mesh())
    config.scorer = "pairs"
    expected, _ = run_steps(config, one_device_mesh())
    for name in ("loss", "grad_norm"):
        ours, theirs = ([float(step[name]) for step in steps] for steps in (found, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    ours, theirs = found[0]["gradients"], expected[0]["gradients"]
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs) > 0


@pytest.mark.parametrize(
    ("variant", "changes", "said"),
    [
        ("scan_t2i", {}, "as teran and chan; matcher is not, use auto"),
        ("tern", {}, "as teran and chan; teran is not, use auto"),
        ("teran", {"model.alignment": "symm"}, "no alignment mode 'symm', only MrSw and MrAVGw"),
    ],
)
def test_models_that_are_scored_otherwise_are_named(variant, changes, said):
    config = tiny_config(variant, scorer="fused", **changes)
    with pytest.raises(UserError, match=said) as error:
        Objective(build(config), config, mask_id=1)
    assert "\n" not in str(error.value)


def test_a_gpu_has_no_such_kernel(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = tiny_config("teran", scorer="fused")
    with pytest.raises(
        UserError, match="a kernel for TPUs, and interpreted on CPUs; this is a gpu"
    ):
        Objective(build(config), config, mask_id=1)
