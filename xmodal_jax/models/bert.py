"""BERT in Linen (Devlin et al., NAACL 2019): embeddings and the layers that are used, no pooler."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.layers import Dtype, TransformerLayer


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT; num_layers may be less than what was pretrained: the first ones are used."""

    vocab_size: int = 30522
    width: int = 768
    num_layers: int = 6
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 512
    dropout: float = 0.1
    epsilon: float = 1e-12


class Bert(nn.Module):
    """Token ids -> hidden states of the last layer that is built."""

    config: BertConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        """tokens [B, W] i32, mask [B, W] bool -> [B, W, width]. Token types are always 0."""
        c = self.config
        init = nn.initializers.normal(0.02)
        words = nn.Embed(c.vocab_size, c.width, embedding_init=init, name="word_embeddings")
        positions = nn.Embed(
            c.max_positions, c.width, embedding_init=init, name="position_embeddings"
        )
        types = nn.Embed(2, c.width, embedding_init=init, name="token_type_embeddings")
        index = jnp.arange(tokens.shape[1])
        x = words(tokens) + positions(index)[None] + types(jnp.zeros_like(index))[None]
        x = nn.LayerNorm(epsilon=c.epsilon, dtype=self.dtype, name="embeddings_norm")(x)
        x = nn.Dropout(c.dropout)(x, deterministic)
        for i in range(c.num_layers):
            x = TransformerLayer(
                num_heads=c.num_heads,
                mlp_dim=c.mlp_dim,
                activation="gelu",
                epsilon=c.epsilon,
                dropout=c.dropout,
                attention_dropout=c.dropout,
                dtype=self.dtype,
                name=f"layer_{i}",
            )(x, mask, deterministic)
        return x
