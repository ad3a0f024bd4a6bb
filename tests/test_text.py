"""The text encoder of the family against loops over the tokens of one caption."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from xmodal_jax.models.bert import Bert, BertConfig
from xmodal_jax.models.text import GruConfig, TextEncoder

LENGTHS, W, D = [6, 3, 2], 6, 4  # the last caption has no word
GRU = GruConfig(vocab_size=11, width=3)
BERT = BertConfig(vocab_size=11, width=6, num_layers=1, num_heads=2, mlp_dim=5, max_positions=8)
MASK = np.arange(W) < np.array(LENGTHS)[:, None]
WORDS = [n - 2 for n in LENGTHS]
every_config = pytest.mark.parametrize("config", [GRU, BERT], ids=["gru", "bert"])


def tokens(seed=0, junk=0):
    ids = np.random.default_rng(seed).integers(4, 11, MASK.shape)
    return jnp.asarray(np.where(MASK, ids, junk), jnp.int32)


def build(config, dtype=jnp.float64):
    """The jitted encoder (params, tokens) and random parameters."""
    module = TextEncoder(config, D, 0.0, dtype)
    params = oracles.random_params(module, tokens(), jnp.asarray(MASK), True)
    run = lambda p, ids: module.apply({"params": p}, ids, jnp.asarray(MASK), True)
    return jax.jit(run), params


@pytest.mark.parametrize("bidirectional", [True, False])
def test_gru_equals_loops(bidirectional, x64):
    encode, params = build(dataclasses.replace(GRU, bidirectional=bidirectional))
    vectors, mask = encode(params, tokens())
    assert vectors.shape == (3, W - 1, D)
    assert [np.flatnonzero(row).tolist() for row in mask] == [list(range(n)) for n in WORDS]
    table = np.asarray(params["word_embeddings"]["embedding"])
    for b, length in enumerate(LENGTHS):
        x = [table[token] for token in np.asarray(tokens()[b, :length])]
        states = oracles.gru(params["gru_forward"], x)
        if bidirectional:
            backward = oracles.gru(params["gru_backward"], x[::-1])[::-1]
            states = [(f + g) / 2 for f, g in zip(states, backward, strict=True)]
        # [CLS] is left out; [SEP] is there, though masked.
        np.testing.assert_allclose(vectors[b, : length - 1], states[1:], atol=1e-12)


def test_bert_is_projected_and_shifted_by_one(x64):
    encode, params = build(BERT)
    vectors, mask = encode(params, tokens())
    assert mask.sum(1).tolist() == WORDS
    bert = Bert(BERT, jnp.float64)
    hidden = bert.apply({"params": params["bert"]}, tokens(), jnp.asarray(MASK), True)
    for b, n in np.ndindex(3, W - 1):
        expected = oracles.dense(params["projection"], np.asarray(hidden[b, n + 1]))
        np.testing.assert_allclose(vectors[b, n], expected, atol=1e-12)


@every_config
def test_what_follows_the_end_changes_nothing(config, x64):
    encode, params = build(config)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(3, W - 1, D)))

    def loss(params, ids):
        vectors, mask = encode(params, ids)
        return jnp.sum(jnp.where(mask[..., None], target * vectors, 0))

    run = jax.jit(jax.value_and_grad(loss))
    results = [run(params, tokens(junk=junk)) for junk in (0, 9)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *results)


@every_config
def test_vectors_have_the_type_of_the_computation(config):
    for dtype in (jnp.float32, jnp.bfloat16):
        encode, params = build(config, dtype)
        assert jax.eval_shape(encode, params, tokens())[0].dtype == dtype


def test_word_embeddings_start_as_published():
    module = TextEncoder(dataclasses.replace(GRU, vocab_size=500), D, 0.0)
    params = module.init(jax.random.key(0), tokens(), jnp.asarray(MASK), True)["params"]
    table = np.asarray(params["word_embeddings"]["embedding"])
    assert -0.1 <= table.min() < -0.09 and 0.09 < table.max() <= 0.1
