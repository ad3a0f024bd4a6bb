"""Reasoning over the regions of an image: self-attention, or graph convolutions.

Spatial graphs come from boxes, semantic ones from the triples of a scene graph (the edges are those
of `ops.graphs`), learned ones from the features. All modules are called with the regions [B, R, D],
their mask [B, R], the batch and whether dropout is off.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.errors import UserError
from xmodal_jax.models.layers import Dtype, Transformer
from xmodal_jax.ops import graphs
from xmodal_jax.ops.embeddings import l2_normalize, without_padding

Batch = Mapping[str, jax.Array]

SPATIAL = ("none", "iou", "directional", "polar-gaussian", "polar-classes")
SEMANTIC = ("none", "binary", "predicates")
MERGES = ("mean", "gate", "chain")
# Labels of the edges of each spatial graph; those of a labelled one get a vector of their own.
_LABELS = {"iou": 1, "directional": 5, "polar-gaussian": 8, "polar-classes": 12}


class GraphConv(nn.Module):
    """V + norm(W_o propagate(E, W_g V + b_g) + b_o), the identity at the start.

    The norm's gain and bias start at 0. The published graph convolutions (VSRN, CGMN) have a batch
    normalisation there; a layer normalisation needs no running statistics and no care for padding.
    With more than one label, the message of an edge labelled k is m * (1 + a_k) + p_k, with a_k
    starting at 0 and p_k the learned embedding of the label.
    """

    num_labels: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, graph: graphs.DenseGraph | graphs.EdgeList) -> jax.Array:
        """x [B, R, D] -> [B, R, D]."""
        width = x.shape[-1]
        message = nn.Dense(width, dtype=self.dtype, name="message")(x)
        scale = shift = None
        if self.num_labels > 1:
            sizes = (self.num_labels, width)
            scale = self.param("label_scale", nn.initializers.zeros, sizes).astype(self.dtype)
            shift = self.param("label_embedding", nn.initializers.normal(0.02), sizes)
            shift = shift.astype(self.dtype)
        gathered = graphs.propagate(graph, message, scale, shift)
        y = nn.Dense(width, dtype=self.dtype, name="out")(gathered)
        zeros = nn.initializers.zeros
        return x + nn.LayerNorm(scale_init=zeros, dtype=self.dtype, name="norm")(y)


class TransformerReasoning(nn.Module):
    """Self-attention over the regions (CHAN)."""

    num_layers: int = 1
    num_heads: int = 4
    mlp_dim: int = 2048
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, batch: Batch, deterministic: bool
    ) -> jax.Array:
        """x [B, R, D], mask [B, R] -> [B, R, D]."""
        sizes = (self.num_layers, self.num_heads, self.mlp_dim, self.dropout)
        return Transformer(*sizes, self.dtype, name="transformer")(
            without_padding(x, mask), mask, deterministic
        )


class AffinityReasoning(nn.Module):
    """Graph convolutions over affinities learned from the regions: E = theta(V) phi(V)^T / n.

    VSRN (Li et al., ICCV 2019), eq. 2 and 3.
    """

    num_layers: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, batch: Batch, deterministic: bool
    ) -> jax.Array:
        """x [B, R, D], mask [B, R] -> [B, R, D]."""
        x = without_padding(x, mask)
        pairs = mask[:, :, None] & mask[:, None, :]
        count = jnp.maximum(jnp.sum(mask, 1), 1)[:, None, None].astype(x.dtype)
        for i in range(self.num_layers):
            theta = nn.Dense(x.shape[-1], dtype=self.dtype, name=f"theta_{i}")(x)
            phi = nn.Dense(x.shape[-1], dtype=self.dtype, name=f"phi_{i}")(x)
            affinity = jnp.where(pairs, jnp.einsum("bid,bjd->bij", theta, phi) / count, 0.0)
            graph = graphs.DenseGraph(affinity[:, None])
            x = GraphConv(dtype=self.dtype, name=f"conv_{i}")(x, graph)
        return x


class SpatialGraph(nn.Module):
    """The edges of one of the rules SPATIAL; polar-gaussian has learned kernels (GSMN)."""

    rule: str
    threshold: float  # iou

    @nn.compact
    def __call__(self, x: jax.Array, boxes: jax.Array, mask: jax.Array) -> graphs.DenseGraph:
        """x [B, R, D], boxes [B, R, 4] in 0..1, mask [B, R]."""
        if self.rule == "iou":
            return graphs.iou_graph(boxes, mask, x, self.threshold)
        if self.rule == "directional":
            return graphs.directional_graph(boxes, mask, sectors=_LABELS["directional"] - 1)
        if self.rule == "polar-classes":
            return graphs.polar_classes_graph(boxes, mask)
        kernels = (_LABELS["polar-gaussian"],)
        unit, angle = nn.initializers.uniform(1.0), nn.initializers.uniform(2 * jnp.pi)
        return graphs.polar_gaussian_graph(
            boxes,
            mask,
            mu=self.param("mu", unit, kernels),
            sigma=self.param("sigma", unit, kernels),
            theta=self.param("theta", lambda *a: angle(*a) - jnp.pi, kernels),
            tau=self.param("tau", unit, kernels),
        )


class GraphReasoning(nn.Module):
    """Stage (a) of CMSEI: a spatial and a semantic graph over the regions, merged.

    merge: mean, unit((spatial + semantic) / 2); gate, a learned mixture; chain, the semantic graph
    after the spatial one. A graph that is "none" is left out; without both the regions stay as
    they are.
    """

    spatial: str = "iou"
    semantic: str = "binary"
    merge: str = "mean"
    num_layers: int = 2
    iou_threshold: float = 0.4
    relation_threshold: float = 0.2  # relations with less confidence are no edges
    relation_top_k: int = 25  # relations of an image; 0: all
    num_predicates: int = 0
    dtype: Dtype = jnp.float32

    def _check(self) -> None:
        choices = {"spatial": SPATIAL, "semantic": SEMANTIC, "merge": MERGES}
        for field, known in choices.items():
            if (value := getattr(self, field)) not in known:
                raise UserError(
                    f"model.reasoning.{field}={value!r} is not one of {', '.join(known)}"
                )

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, batch: Batch, deterministic: bool
    ) -> jax.Array:
        """x [B, R, D]; boxes and, for the semantic graph, relations of the batch -> [B, R, D]."""
        self._check()
        x = without_padding(x, mask)
        outputs = []
        if self.spatial != "none":
            rule = SpatialGraph(self.spatial, self.iou_threshold, name="spatial")
            graph = rule(x, batch["boxes"], mask)
            outputs.append(self._convolve(x, graph, _LABELS[self.spatial], "spatial"))
        if self.semantic != "none":
            start = outputs.pop() if self.merge == "chain" and outputs else x
            labels = 2 * self.num_predicates + 1 if self.semantic == "predicates" else 1
            outputs.append(self._convolve(start, self._relations(batch, mask), labels, "semantic"))
        if not outputs:
            return x
        return l2_normalize(self._merged(outputs))

    def _merged(self, outputs: list[jax.Array]) -> jax.Array:
        if len(outputs) == 1:
            return outputs[0]
        if self.merge == "mean":
            return (outputs[0] + outputs[1]) / 2
        both = jnp.concatenate(outputs, -1)
        gate = jax.nn.sigmoid(nn.Dense(outputs[0].shape[-1], dtype=self.dtype, name="gate")(both))
        return gate * outputs[0] + (1 - gate) * outputs[1]

    def _convolve(
        self, x: jax.Array, graph: graphs.DenseGraph | graphs.EdgeList, labels: int, name: str
    ) -> jax.Array:
        for i in range(self.num_layers):
            x = GraphConv(labels, self.dtype, name=f"{name}_{i}")(x, graph)
        return x

    def _relations(self, batch: Batch, mask: jax.Array) -> graphs.EdgeList:
        empty = {
            "relations": jnp.zeros((mask.shape[0], 1, 3), jnp.int32),
            "relation_scores": jnp.zeros((mask.shape[0], 1)),
            "relation_mask": jnp.zeros((mask.shape[0], 1), bool),
        }
        # An image of a search query has no scene graph: its graph is the identity.
        relations, scores, valid = (batch.get(name, value) for name, value in empty.items())
        return graphs.relation_graph(
            relations,
            scores,
            valid,
            mask,
            threshold=self.relation_threshold,
            top_k=self.relation_top_k,
            num_predicates=self.num_predicates,
            labelled=self.semantic == "predicates",
        )
