"""Image branch: region features with their boxes, through a transformer of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.errors import UserError
from xmodal_jax.models.layers import Dtype, Mlp, Transformer
from xmodal_jax.ops.embeddings import without_padding

BOX_ENCODINGS = ("concat-and-process", "project-and-sum", "none")


def box_geometry(boxes: jax.Array) -> jax.Array:
    """boxes [..., 4] x1, y1, x2, y2 in 0..1 -> [..., 5] with the area last."""
    width = boxes[..., 2] - boxes[..., 0]
    height = boxes[..., 3] - boxes[..., 1]
    return jnp.concatenate([boxes, (width * height)[..., None]], -1)


class BoxEncoding(nn.Module):
    """Adds box geometry to region features (TERAN section 3.1).

    concat-and-process: MLP of [feature; geometry]; project-and-sum: feature + Dense(geometry).
    """

    kind: str = "concat-and-process"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, regions: jax.Array, boxes: jax.Array) -> jax.Array:
        """regions [B, R, F], boxes [B, R, 4] in 0..1 -> [B, R, F]."""
        width = regions.shape[-1]
        geometry = box_geometry(boxes).astype(regions.dtype)
        if self.kind == "concat-and-process":
            both = jnp.concatenate([regions, geometry], -1)
            return Mlp(width, width, self.dtype, name="mlp")(both)
        if self.kind == "project-and-sum":
            return regions + nn.Dense(width, dtype=self.dtype, name="dense")(geometry)
        if self.kind == "none":
            return regions
        raise UserError(f"box_encoding {self.kind!r} is not one of {', '.join(BOX_ENCODINGS)}")


class RegionEncoder(nn.Module):
    """A zero CLS slot before the regions, box encoding, transformer at the feature's width."""

    box_encoding: str
    num_layers: int
    num_heads: int
    mlp_dim: int
    dropout: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, regions: jax.Array, boxes: jax.Array, mask: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """regions [B, R, F], boxes [B, R, 4], mask [B, R] -> ([B, 1 + R, F], mask [B, 1 + R])."""
        slot = [(0, 0), (1, 0), (0, 0)]
        regions, boxes = without_padding(regions, mask), without_padding(boxes, mask)
        regions = jnp.pad(regions.astype(self.dtype), slot)
        mask = jnp.pad(mask, slot[:2], constant_values=True)
        x = BoxEncoding(self.box_encoding, self.dtype, name="box_encoding")(
            regions, jnp.pad(boxes, slot)
        )
        self.sow("intermediates", "box_encoded", x)
        x = Transformer(
            self.num_layers,
            self.num_heads,
            self.mlp_dim,
            self.dropout,
            self.dtype,
            name="transformer",
        )(x, mask, deterministic)
        return x, mask


PROJECTIONS = ("linear", "residual-mlp")


class RegionProjection(nn.Module):
    """Region features to the width of the embeddings.

    linear: one dense layer; residual-mlp: dense + MLP with half the width inside (Chen et al.,
    VSE-infinity, CVPR 2021), a layer normalisation in the place of its batch normalisation.
    """

    kind: str
    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, regions: jax.Array) -> jax.Array:
        """regions [B, R, F] -> [B, R, D]."""
        if self.kind not in PROJECTIONS:
            raise UserError(
                f"model.projection={self.kind!r} is not one of {', '.join(PROJECTIONS)}"
            )
        regions = regions.astype(self.dtype)
        x = nn.Dense(self.width, dtype=self.dtype, name="dense")(regions)
        if self.kind == "linear":
            return x
        hidden = nn.Dense(self.width // 2, dtype=self.dtype, name="mlp_in")(regions)
        hidden = jax.nn.relu(nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(hidden))
        return x + nn.Dense(self.width, dtype=self.dtype, name="mlp_out")(hidden)
