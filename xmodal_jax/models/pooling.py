"""Poolings: one vector from a set of token vectors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.models.layers import Dtype, Mlp
from xmodal_jax.ops.embeddings import without_padding

POOLINGS = ("first", "mean", "sum", "sum-and-map", "gated", "gru", "last", "gpo", "attention")


class Pooling(nn.Module):
    """One vector [B, D] from the token set [B, N, D].

    kind: first (the CLS slot, TERN), mean (over all valid tokens but the CLS slot), sum,
    sum-and-map (sum, then an MLP), gated (sum of gated MLP outputs), gru (last state of a GRU over
    the set, VSRN), last (the last valid token), gpo (VSE-infinity), attention (SGRAF).
    """

    kind: str = "first"
    dtype: Dtype = jnp.float32
    cls_slot: bool = True  # position 0 is no token of the item but a slot of the encoder
    field: str = "pooling"  # of the configuration's model, for error messages

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B, N, D], mask [B, N] bool -> [B, D], not normalised."""
        width, mask = x.shape[-1], jnp.asarray(mask)
        if self.kind == "first":
            return x[:, 0]
        x = without_padding(x, mask)
        if self.kind == "mean":
            return masked_mean(x, mask.at[:, 0].set(False) if self.cls_slot else mask)
        if self.kind == "sum":
            return jnp.sum(x, 1)
        if self.kind == "sum-and-map":
            return Mlp(width, width, self.dtype, name="map")(jnp.sum(x, 1))
        if self.kind == "gated":
            gate = jax.nn.sigmoid(Mlp(width, 1, self.dtype, name="gate")(x))
            gate = gate * mask.astype(x.dtype)[..., None]
            return jnp.sum(gate * Mlp(width, width, self.dtype, name="node")(x), 1)
        if self.kind == "gru":
            # The valid tokens come first: a dropped region among them is no step of the GRU.
            order = jnp.argsort(~mask, axis=1, stable=True)
            run = nn.RNN(nn.GRUCell(width, dtype=self.dtype, name="gru"), return_carry=True)
            start = jnp.zeros((x.shape[0], width), x.dtype)
            ordered = jnp.take_along_axis(x, order[..., None], axis=1)
            state = run(ordered, initial_carry=start, seq_lengths=jnp.sum(mask, 1))[0]
            return jnp.where(jnp.any(mask, 1, keepdims=True), state, 0)
        if self.kind == "last":
            last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
            return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        if self.kind == "gpo":
            return GeneralizedPooling(name="gpo")(x, mask)
        if self.kind == "attention":
            return SelfAttentionPooling(self.dtype, name="attention")(x, mask)
        raise UserError(f"model.{self.field}={self.kind!r} is not one of {', '.join(POOLINGS)}")


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the valid rows: x [B, N, D], mask [B, N] -> [B, D]; 0 where there is none."""
    count = jnp.maximum(jnp.sum(mask, 1), 1)[:, None].astype(x.dtype)
    return jnp.sum(without_padding(x, mask), 1) / count


class GeneralizedPooling(nn.Module):
    """Generalized Pooling Operator (Chen et al., VSE-infinity, CVPR 2021, section 4).

    sum_k w_k * (k-th largest value of each dimension), where the weights of a set of n come from a
    bidirectional GRU over sinusoidal codes of the positions 0 .. n - 1: they depend on n alone.
    """

    width: int = 32
    temperature: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B, N, D], mask [B, N] -> [B, D]."""
        table = self._weights(x.shape[1], jnp.promote_types(x.dtype, jnp.float32))  # [N + 1, N]
        weights = table[jnp.sum(mask, 1)].astype(x.dtype)
        largest_first = -jnp.sort(-jnp.where(mask[..., None], x, -jnp.inf), axis=1)
        largest_first = jnp.where(jnp.isneginf(largest_first), 0.0, largest_first)
        return jnp.einsum("bn,bnd->bd", weights, largest_first)

    def _weights(self, most: int, dtype: Dtype) -> jax.Array:
        """Weights [N + 1, N] of sets of 0 .. N; computed once for a batch."""
        codes = jnp.asarray(position_codes(most, self.width), dtype)
        codes = jnp.broadcast_to(codes, (most + 1, most, self.width))
        lengths, start = jnp.arange(most + 1), jnp.zeros((most + 1, self.width), dtype)

        def states(reverse: bool, name: str) -> jax.Array:
            cell = nn.GRUCell(self.width, name=name)
            run = nn.RNN(cell, reverse=reverse, keep_order=True)
            return run(codes, initial_carry=start, seq_lengths=lengths)

        both = (states(False, "forward") + states(True, "backward")) / 2
        logits = nn.Dense(1, use_bias=False, name="weight")(both)[..., 0] / self.temperature
        valid = jnp.arange(most)[None, :] < lengths[:, None]
        # A finite floor: the empty set gets zeros and no NaN.
        return jax.nn.softmax(jnp.where(valid, logits, -1e9), axis=1) * valid


def position_codes(count: int, width: int) -> np.ndarray:
    """Sinusoidal codes [count, width] (Vaswani et al., 2017): sines at even, cosines at odd."""
    angle = np.arange(count)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(count, width)


class SelfAttentionPooling(nn.Module):
    """Tokens weighted by how they agree with their mean (SGRAF, Diao et al., AAAI 2021, eq. 3).

    softmax over the tokens of Dense(tanh(Dense(x_n)) * tanh(Dense(mean))); the published code's
    batch normalisations are left out, which would make an item depend on its batch.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B, N, D], mask [B, N] -> [B, D]."""
        dense = lambda name: nn.Dense(x.shape[-1], dtype=self.dtype, name=name)
        local = jnp.tanh(dense("local")(x))
        whole = jnp.tanh(dense("global")(masked_mean(x, mask)))[:, None, :]
        logits = nn.Dense(1, dtype=self.dtype, name="weight")(local * whole)[..., 0]
        weights = jax.nn.softmax(jnp.where(mask, logits, -1e9), axis=1) * mask.astype(x.dtype)
        return jnp.einsum("bn,bnd->bd", weights, x)
