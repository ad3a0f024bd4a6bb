"""TERAN beyond the golden values: padding, special tokens, dropout, bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.errors import UserError
from xmodal_jax.models.bert import BertConfig
from xmodal_jax.models.teran import Teran, TeranConfig

CONFIG = TeranConfig(
    text=BertConfig(
        vocab_size=30, width=16, num_layers=1, num_heads=2, mlp_dim=16, max_positions=20
    ),
    feature_width=16,
    region_layers=1,
    embed_dim=16,
    top_layers=1,
    num_heads=2,
    mlp_dim=16,
)
REGIONS, WORDS = [4, 2, 6], [5, 3, 8]


def batch(regions=6, tokens=8, junk=0.0):
    """Three items; what lies beyond their lengths is `junk`."""
    rng = np.random.default_rng(0)
    region_mask = np.arange(regions) < np.array(REGIONS)[:, None]
    token_mask = np.arange(tokens) < np.array(WORDS)[:, None]
    values = rng.normal(size=(3, 6, 16)), rng.uniform(size=(3, 6, 4)), rng.integers(4, 30, (3, 8))
    pad = lambda x, n: np.pad(x, [(0, 0), (0, n - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    features, boxes, ids = (
        pad(x, n) for x, n in zip(values, (regions, regions, tokens), strict=True)
    )
    return {
        "regions": np.where(region_mask[..., None], features, junk).astype(np.float32),
        "boxes": np.where(region_mask[..., None], boxes, junk).astype(np.float32),
        "region_mask": region_mask,
        "tokens": np.where(token_mask, ids, int(junk)).astype(np.int32),
        "token_mask": token_mask,
    }


def encode(config, data, seed=0, **rngs):
    model = Teran(config)
    params = model.init(jax.random.key(seed), batch())["params"]
    run = lambda method: model.apply(
        {"params": params}, data, not rngs, method=method, rngs=rngs or None
    )
    return run("encode_image"), run("encode_text")


@pytest.mark.parametrize("pooling", ["first", "mean", "gru"])
def test_padding_and_what_lies_in_it_change_nothing(pooling):
    config = dataclasses.replace(CONFIG, pooling=pooling)
    small = encode(config, batch())
    large = encode(config, batch(regions=11, tokens=13, junk=3.0))
    for one, other in zip(small, large, strict=True):
        mask = np.asarray(one.mask)
        assert (np.asarray(other.mask)[:, : mask.shape[1]] == mask).all()
        assert not np.asarray(other.mask)[:, mask.shape[1] :].any()
        trimmed = np.asarray(other.tokens)[:, : mask.shape[1]]
        np.testing.assert_allclose(np.asarray(one.tokens)[mask], trimmed[mask], atol=2e-6)
        np.testing.assert_allclose(one.pooled, other.pooled, atol=2e-6)


def test_special_tokens_take_no_part():
    image, text = encode(CONFIG, batch())
    assert image.mask.sum(1).tolist() == REGIONS
    assert text.mask.sum(1).tolist() == [n - 2 for n in WORDS]
    assert text.tokens.shape[1] == 7
    # The public code drops one word piece more, and the columns that are padding for all.
    _, parity = encode(dataclasses.replace(CONFIG, teran_parity=True), batch())
    assert parity.mask.sum(1).tolist() == [n - 3 for n in WORDS]
    assert parity.tokens.shape[1] == 5


def test_vectors_have_unit_length():
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 1e-2)):
        for side in encode(dataclasses.replace(CONFIG, dtype=dtype), batch()):
            norms = np.linalg.norm(np.asarray(side.tokens, np.float32), axis=-1)
            np.testing.assert_allclose(norms, 1, atol=tolerance)
            norms = np.linalg.norm(np.asarray(side.pooled, np.float32), axis=-1)
            np.testing.assert_allclose(norms, 1, atol=tolerance)


def test_bfloat16_computes_near_float32_with_float32_parameters():
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    params = Teran(half).init(jax.random.key(0), batch())["params"]
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    for exact, rough in zip(encode(CONFIG, batch()), encode(half, batch()), strict=True):
        assert rough.tokens.dtype == jnp.bfloat16
        half_tokens = np.asarray(rough.tokens, np.float32)
        half_tokens /= np.linalg.norm(half_tokens, axis=-1, keepdims=True)
        cosine = np.sum(np.asarray(exact.tokens) * half_tokens, -1)
        assert cosine[np.asarray(exact.mask)].min() > 0.999


def test_dropout_acts_in_training_only_and_follows_its_key():
    key = jax.random.key(1)
    quiet, again = encode(CONFIG, batch())[0], encode(CONFIG, batch())[0]
    np.testing.assert_array_equal(quiet.tokens, again.tokens)
    noisy = encode(CONFIG, batch(), dropout=key)[0]
    assert np.abs(noisy.tokens - quiet.tokens).max() > 1e-3
    np.testing.assert_array_equal(noisy.tokens, encode(CONFIG, batch(), dropout=key)[0].tokens)
    other = encode(CONFIG, batch(), dropout=jax.random.key(2))[0]
    assert np.abs(noisy.tokens - other.tokens).max() > 1e-3


def test_unknown_box_encodings_are_listed():
    config = dataclasses.replace(CONFIG, box_encoding="polar")
    with pytest.raises(UserError, match="box_encoding 'polar' is not one of concat-and-process"):
        Teran(config).init(jax.random.key(0), batch())
