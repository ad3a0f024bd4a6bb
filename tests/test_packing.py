"""Packed captions against numpy loops over pairs, and what a block holds."""

import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.ops.packing import MODES, pack_captions, packed_scores

IMAGES, REGIONS, CAPTIONS, WORDS, WIDTH = 5, 4, 23, 6, 8


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    regions = rng.normal(size=(IMAGES, REGIONS, WIDTH)).astype(np.float32)
    # Images with all regions, with some, with holes, and one without any.
    region_mask = rng.uniform(size=(IMAGES, REGIONS)) < 0.6
    region_mask[0], region_mask[1] = True, False
    words = rng.normal(size=(CAPTIONS, WORDS, WIDTH)).astype(np.float32)
    word_mask = rng.uniform(size=(CAPTIONS, WORDS)) < 0.5
    word_mask[3], word_mask[4] = False, True
    # Nothing under a mask may matter.
    regions[~region_mask], words[~word_mask] = np.nan, np.inf
    return regions, region_mask, words, word_mask


def loops(regions, region_mask, words, word_mask, mode, fill_zero):
    found = np.zeros((IMAGES, CAPTIONS))
    for i in range(IMAGES):
        for c in range(CAPTIONS):
            best = []
            for word in words[c][word_mask[c]]:
                similar = [float(r @ word) for r in regions[i][region_mask[i]]]
                if not similar:
                    continue
                if fill_zero and not region_mask[i].all():
                    similar.append(0.0)
                best.append(max(similar))
            if not best:
                continue
            found[i, c] = {
                "MrSw": sum(best),
                "MrAVGw": sum(best) / len(best),
                "MrLSEw": np.log(sum(np.exp(b / 0.1) for b in best)),
            }[mode]
    return found


def packed(data, mode, fill_zero, size, dtype=np.float32):
    regions, region_mask, words, word_mask = data
    images = Embeddings(jnp.asarray(regions, dtype), jnp.asarray(region_mask), None)
    halves = ((words[c].astype(dtype), word_mask[c]) for c in (slice(0, 10), slice(10, None)))
    scores = [
        np.asarray(packed_scores(images, block, mode, fill_zero))[:, :count]
        for block, count in pack_captions(halves, size)
    ]
    return np.concatenate(scores, axis=1)


@pytest.mark.parametrize("size", [WORDS, 16, 512])
@pytest.mark.parametrize("fill_zero", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_scores_equal_loops(data, mode, fill_zero, size):
    found = packed(data, mode, fill_zero, size)
    assert found.shape == (IMAGES, CAPTIONS) and found.dtype == np.float32
    np.testing.assert_allclose(found, loops(*data, mode, fill_zero), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_summed_in_float32(data):
    found = packed(data, "MrSw", False, 16, jnp.bfloat16)
    regions, region_mask, words, word_mask = data
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float32) for x in (regions, words)]
    expected = loops(rounded[0], region_mask, rounded[1], word_mask, "MrSw", False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [WORDS, 16, 40])
def test_blocks_hold_whole_captions_in_their_order(data, size):
    *_, words, word_mask = data
    lengths = []
    for block, count in pack_captions(iter([(words, word_mask)]), size):
        assert block.words.shape == (size, WIDTH) and count <= len(block.length) == size // 4
        own = block.caption < len(block.length)
        assert own.sum() == block.length.sum() and (np.diff(block.caption) >= 0).all()
        np.testing.assert_array_equal(
            np.bincount(block.caption[own], minlength=count), block.length[:count]
        )
        assert not block.words[~own].any()
        lengths += block.length[:count].tolist()
    assert lengths == word_mask.sum(axis=1).tolist()


def test_a_caption_longer_than_a_block_is_an_error(data):
    *_, words, word_mask = data
    with pytest.raises(ValueError, match="captions of 6 words do not fit into blocks of 5"):
        next(pack_captions(iter([(words, word_mask)]), 5))
