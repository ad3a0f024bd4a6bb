"""Tables between published PyTorch names and our parameter paths, with the change of layout.

A torch Linear weight is [out, in], ours [in, out]; attention kernels carry a head axis; torch packs
query, key and value in one tensor. An entry is one leaf of ours; several leaves may be parts of one
published tensor.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from xmodal_jax.models.teran import TeranConfig


class Entry(NamedTuple):
    """One parameter leaf and where it is found in the published file."""

    leaf: str  # path of ours, with slashes
    sources: tuple[str, ...]  # published names; with several, their sum
    layout: str = "copy"  # copy, transpose, heads_in, heads_bias, heads_out
    part: int = 0  # which of `parts` equal parts of the published tensor's first axis
    parts: int = 1
    heads: int = 1


def to_ours(entry: Entry, tensor: np.ndarray) -> np.ndarray:
    """The leaf's value from one published tensor."""
    x = np.split(tensor, entry.parts)[entry.part]
    if entry.layout == "transpose":
        return x.T
    if entry.layout == "heads_in":
        return x.T.reshape(x.shape[1], entry.heads, -1)
    if entry.layout == "heads_bias":
        return x.reshape(entry.heads, -1)
    if entry.layout == "heads_out":
        return x.T.reshape(entry.heads, -1, x.shape[0])
    return x


def to_published(entry: Entry, leaf: np.ndarray) -> np.ndarray:
    """The inverse of `to_ours`: this leaf's part of the published tensor."""
    if entry.layout == "transpose":
        return leaf.T
    if entry.layout == "heads_in":
        return leaf.reshape(leaf.shape[0], -1).T
    if entry.layout == "heads_bias":
        return leaf.reshape(-1)
    if entry.layout == "heads_out":
        return leaf.reshape(-1, leaf.shape[-1]).T
    return leaf


def _dense(leaf: str, source: str) -> Iterator[Entry]:
    yield Entry(f"{leaf}/kernel", (f"{source}.weight",), "transpose")
    yield Entry(f"{leaf}/bias", (f"{source}.bias",))


def _norm(leaf: str, source: str) -> Iterator[Entry]:
    yield Entry(f"{leaf}/scale", (f"{source}.weight",))
    yield Entry(f"{leaf}/bias", (f"{source}.bias",))


def _mlp(leaf: str, source: str) -> Iterator[Entry]:
    yield from _dense(f"{leaf}/dense_in", f"{source}.0")
    yield from _dense(f"{leaf}/dense_out", f"{source}.2")


def _attention_out(leaf: str, source: str, heads: int) -> Iterator[Entry]:
    yield Entry(f"{leaf}/kernel", (f"{source}.weight",), "heads_out", heads=heads)
    yield Entry(f"{leaf}/bias", (f"{source}.bias",))


def bert_entries(leaf: str, source: str, num_layers: int, heads: int) -> Iterator[Entry]:
    """A Hugging Face BertModel without its pooler; `source` is a prefix that ends in a dot."""
    for name in ("word", "position", "token_type"):
        yield Entry(
            f"{leaf}/{name}_embeddings/embedding", (f"{source}embeddings.{name}_embeddings.weight",)
        )
    yield from _norm(f"{leaf}/embeddings_norm", f"{source}embeddings.LayerNorm")
    for i in range(num_layers):
        ours, theirs = f"{leaf}/layer_{i}", f"{source}encoder.layer.{i}"
        for name in ("query", "key", "value"):
            target, origin = f"{ours}/attention/{name}", f"{theirs}.attention.self.{name}"
            yield Entry(f"{target}/kernel", (f"{origin}.weight",), "heads_in", heads=heads)
            yield Entry(f"{target}/bias", (f"{origin}.bias",), "heads_bias", heads=heads)
        yield from _attention_out(
            f"{ours}/attention/out", f"{theirs}.attention.output.dense", heads
        )
        yield from _norm(f"{ours}/attention_norm", f"{theirs}.attention.output.LayerNorm")
        yield from _dense(f"{ours}/mlp_in", f"{theirs}.intermediate.dense")
        yield from _dense(f"{ours}/mlp_out", f"{theirs}.output.dense")
        yield from _norm(f"{ours}/mlp_norm", f"{theirs}.output.LayerNorm")


def _transformer(leaf: str, source: str, num_layers: int, heads: int) -> Iterator[Entry]:
    """A torch.nn.TransformerEncoder."""
    for i in range(num_layers):
        ours, theirs = f"{leaf}/layer_{i}", f"{source}.layers.{i}"
        for part, name in enumerate(("query", "key", "value")):
            target, origin = f"{ours}/attention/{name}", f"{theirs}.self_attn.in_proj"
            yield Entry(f"{target}/kernel", (f"{origin}_weight",), "heads_in", part, 3, heads)
            yield Entry(f"{target}/bias", (f"{origin}_bias",), "heads_bias", part, 3, heads)
        yield from _attention_out(f"{ours}/attention/out", f"{theirs}.self_attn.out_proj", heads)
        yield from _norm(f"{ours}/attention_norm", f"{theirs}.norm1")
        yield from _dense(f"{ours}/mlp_in", f"{theirs}.linear1")
        yield from _dense(f"{ours}/mlp_out", f"{theirs}.linear2")
        yield from _norm(f"{ours}/mlp_norm", f"{theirs}.norm2")


def _gru(leaf: str, source: str) -> Iterator[Entry]:
    """torch.nn.GRU, gates r, z, n; our cell has one bias where torch adds two (but for n)."""
    for part, gate in enumerate("rzn"):
        for side, kernel in (("i", "weight_ih_l0"), ("h", "weight_hh_l0")):
            yield Entry(
                f"{leaf}/{side}{gate}/kernel", (f"{source}.{kernel}",), "transpose", part, 3
            )
    both = (f"{source}.bias_ih_l0", f"{source}.bias_hh_l0")
    yield Entry(f"{leaf}/ir/bias", both, part=0, parts=3)
    yield Entry(f"{leaf}/iz/bias", both, part=1, parts=3)
    yield Entry(f"{leaf}/in/bias", both[:1], part=2, parts=3)
    yield Entry(f"{leaf}/hn/bias", both[1:], part=2, parts=3)


def _pooling(leaf: str, source: str, kind: str) -> Iterator[Entry]:
    if kind == "sum-and-map":
        yield from _mlp(f"{leaf}/map", f"{source}.map")
    if kind == "gated":
        yield from _mlp(f"{leaf}/gate", f"{source}.gated_aggr.gate_fn")
        yield from _mlp(f"{leaf}/node", f"{source}.gated_aggr.node_fn")
    if kind == "gru":
        yield from _gru(f"{leaf}/gru", f"{source}.gru_aggr")


def teran_entries(config: TeranConfig) -> Iterator[Entry]:
    """Every parameter of ours in a state dict of the public TERAN code, without `img_txt_enc.`."""
    text, heads = config.text, config.num_heads
    yield from bert_entries("bert", "txt_enc.bert_model.", text.num_layers, text.num_heads)
    yield from _transformer(
        "text_transformer", "txt_enc.transformer_encoder", config.text_layers, heads
    )
    box, origin = "region_encoder/box_encoding", "img_enc.pos_encoding_image.map"
    if config.box_encoding == "concat-and-process":
        yield from _mlp(f"{box}/mlp", origin)
    if config.box_encoding == "project-and-sum":
        yield from _dense(f"{box}/dense", origin)
    yield from _transformer(
        "region_encoder/transformer", "img_enc.transformer_encoder", config.region_layers, heads
    )
    yield from _dense("image_projection", "img_proj")
    yield from _dense("text_projection", "cap_proj")
    yield from _transformer("text_top", "transformer_encoder_1", config.top_layers, heads)
    if not config.shared_top:
        yield from _transformer("image_top", "transformer_encoder_2", config.top_layers, heads)
    yield from _pooling("text_pooling", "text_aggregation", config.pooling)
    yield from _pooling("image_pooling", "image_aggregation", config.pooling)


def teran_unused(config: TeranConfig) -> dict[str, tuple[int, ...]]:
    """Tensors of the public code that never reach its output: name -> shape."""
    width, embed = config.text.width, config.embed_dim
    return {
        "txt_enc.bert_model.pooler.dense.weight": (width, width),
        "txt_enc.bert_model.pooler.dense.bias": (width,),
        "txt_enc.map.weight": (embed, width),
        "txt_enc.map.bias": (embed,),
        "img_enc.fc.weight": (embed, config.feature_width),
        "img_enc.fc.bias": (embed,),
    }


# The word embeddings are saved twice by the public code, under two names of one tensor.
TERAN_ALIAS = (
    "txt_enc.word_embeddings.weight",
    "txt_enc.bert_model.embeddings.word_embeddings.weight",
)
