"""Caption branch of the family: BERT, or a bidirectional GRU over learned word embeddings."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.bert import Bert, BertConfig
from xmodal_jax.models.layers import Dtype


@dataclasses.dataclass(frozen=True)
class GruConfig:
    """Sizes of the recurrent text encoder; its states are as wide as the embeddings."""

    vocab_size: int
    width: int = 300  # of the word embeddings
    bidirectional: bool = True


class TextEncoder(nn.Module):
    """Token ids [B, W], laid out [CLS] words [SEP] padding -> the words' vectors and their mask.

    BERT is followed by a dense layer to `embed_dim` (VSE-infinity, CHAN); the two directions of a
    GRU are averaged (SCAN). As in all models, position n of the result is token n + 1: [CLS] is
    left out, [SEP] is masked.
    """

    config: BertConfig | GruConfig
    embed_dim: int
    dropout: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: jax.Array, mask: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """tokens [B, W], mask [B, W] -> ([B, W - 1, D], bool [B, W - 1])."""
        if isinstance(self.config, BertConfig):
            x = Bert(self.config, self.dtype, name="bert")(tokens, mask, deterministic)
            x = nn.Dense(self.embed_dim, dtype=self.dtype, name="projection")(x)
        else:
            x = self._recurrent(self.config, tokens, mask, deterministic)
        words = jnp.arange(mask.shape[1])[None, :] < jnp.sum(mask, 1, keepdims=True) - 1
        return x[:, 1:], words[:, 1:]

    def _recurrent(
        self, config: GruConfig, tokens: jax.Array, mask: jax.Array, deterministic: bool
    ) -> jax.Array:
        init = nn.initializers.uniform(0.2)
        embed = nn.Embed(
            config.vocab_size,
            config.width,
            embedding_init=lambda *args: init(*args) - 0.1,  # -0.1..0.1, as published
            name="word_embeddings",
        )
        x = nn.Dropout(self.dropout)(embed(tokens).astype(self.dtype), deterministic)
        lengths = jnp.sum(mask, 1)
        # States are summed up in float32 at least.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        start = jnp.zeros((x.shape[0], self.embed_dim), wide)

        def states(reverse: bool, name: str) -> jax.Array:
            cell = nn.GRUCell(self.embed_dim, dtype=self.dtype, name=name)
            run = nn.RNN(cell, reverse=reverse, keep_order=True)
            return run(x, initial_carry=start, seq_lengths=lengths)

        out = states(False, "gru_forward")
        if config.bidirectional:
            out = (out + states(True, "gru_backward")) / 2
        return out.astype(self.dtype)
