"""Layers that several models share: post-norm transformer layers and a small MLP."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = Any
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class TransformerLayer(nn.Module):
    """Post-norm transformer encoder layer (Vaswani et al., 2017), as in BERT and torch.nn.

    x = norm(x + drop(attention(x)));  x = norm(x + drop(mlp(x))).
    """

    num_heads: int
    mlp_dim: int
    activation: str = "relu"
    epsilon: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.1
    mlp_dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        """x [B, N, D], mask [B, N] bool of the keys -> [B, N, D]."""
        width = x.shape[-1]
        norm = lambda name: nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=self.num_heads,
            dtype=self.dtype,
            dropout_rate=self.attention_dropout,
            broadcast_dropout=False,
            force_fp32_for_softmax=self.dtype == jnp.bfloat16,
            deterministic=deterministic,
            name="attention",
        )
        x = norm("attention_norm")(x + drop(attention(x, mask=mask[:, None, None, :])))
        y = nn.Dense(self.mlp_dim, dtype=self.dtype, name="mlp_in")(x)
        y = nn.Dropout(self.mlp_dropout)(ACTIVATIONS[self.activation](y), deterministic)
        y = nn.Dense(width, dtype=self.dtype, name="mlp_out")(y)
        return norm("mlp_norm")(x + drop(y))


class Transformer(nn.Module):
    """A stack of post-norm layers without a final norm: torch.nn.TransformerEncoder."""

    num_layers: int
    num_heads: int
    mlp_dim: int
    dropout: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        """x [B, N, D], mask [B, N] bool -> [B, N, D]."""
        for i in range(self.num_layers):
            x = TransformerLayer(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                dropout=self.dropout,
                attention_dropout=self.dropout,
                mlp_dropout=self.dropout,
                dtype=self.dtype,
                name=f"layer_{i}",
            )(x, mask, deterministic)
        return x


class Mlp(nn.Module):
    """Dense, ReLU, Dense."""

    hidden: int
    out: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="dense_in")(x))
        return nn.Dense(self.out, dtype=self.dtype, name="dense_out")(x)
