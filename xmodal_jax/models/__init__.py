"""Models by name. A model encodes images and captions and scores one pair; see `teran.Teran`."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from xmodal_jax.errors import UserError
from xmodal_jax.models import pretrained, similarity
from xmodal_jax.models.bert import BertConfig
from xmodal_jax.models.cmsei import CmseiSimilarity
from xmodal_jax.models.matcher import Matcher, MatcherConfig
from xmodal_jax.models.reasoning import (
    AffinityReasoning,
    GraphReasoning,
    TransformerReasoning,
)
from xmodal_jax.models.teran import Teran, TeranConfig
from xmodal_jax.models.text import GruConfig

_SIMILARITIES: dict[str, type[nn.Module]] = {
    "dot": similarity.DotSimilarity,
    "alignment": similarity.AlignmentSimilarity,
    "cross-attention": similarity.CrossAttentionSimilarity,
    "sgr": similarity.SgrSimilarity,
    "saf": similarity.SafSimilarity,
    "cmsei": CmseiSimilarity,
}
_REASONINGS: dict[str, type[nn.Module]] = {
    "transformer": TransformerReasoning,
    "affinity": AffinityReasoning,
    "graphs": GraphReasoning,
}


def _bert(text: Any, vocab_size: int) -> BertConfig:
    """Sizes of the text encoder, those of its pretrained weights where it has any."""
    if text.pretrained:
        sizes = pretrained.bert_config(pretrained.find(text.pretrained), text.num_layers)
        if sizes.vocab_size < vocab_size:
            raise UserError(
                f"the tokenizer has {vocab_size} tokens, but {text.pretrained} only "
                f"{sizes.vocab_size}; set data.tokenizer to the one that belongs to it"
            )
    else:
        names = {field.name for field in dataclasses.fields(BertConfig)} - {"vocab_size"}
        sizes = BertConfig(vocab_size, **{k: v for k, v in text.items() if k in names})
    if sizes.width % sizes.num_heads:
        raise UserError(
            f"model.text.num_heads={sizes.num_heads} does not divide text.width={sizes.width}; "
            "use a divisor"
        )
    return dataclasses.replace(sizes, dropout=text.dropout)


def _check_heads(num_heads: int, widths: dict[str, int], field: str) -> None:
    for what, width in widths.items():
        if width % num_heads:
            raise UserError(
                f"{field}={num_heads} does not divide {what}, {width} wide; use a divisor"
            )


def _teran(config: Any, feature_width: int, vocab_size: int, num_predicates: int) -> Teran:
    del num_predicates
    if config.text.get("encoder", "bert") != "bert":
        raise UserError(f"model.text.encoder={config.text.encoder!r}: TERAN takes a BERT; use bert")
    wide = {"region features": feature_width, "embed_dim": config.embed_dim}
    _check_heads(config.num_heads, wide, "model.num_heads")
    others = {k: v for k, v in config.items() if k not in ("name", "text")}
    text = _bert(config.text, vocab_size)
    return Teran(TeranConfig(text=text, feature_width=feature_width, **others))


def _matcher(config: Any, feature_width: int, vocab_size: int, num_predicates: int) -> Matcher:
    del feature_width  # its layers take what they get
    text = config.text
    if text.encoder not in ("bert", "gru"):
        raise UserError(f"model.text.encoder={text.encoder!r} is not known; use bert or gru")
    encoder = (
        _bert(text, vocab_size)
        if text.encoder == "bert"
        else GruConfig(vocab_size, text.width, text.bidirectional)
    )
    slots = ("name", "text", "similarity", "reasoning")
    dtype = jnp.dtype(config.dtype)
    return Matcher(
        MatcherConfig(
            text=encoder,
            similarity=_part(config.similarity, _SIMILARITIES, "model.similarity", dtype=dtype),
            reasoning=_reasoning(config, num_predicates, dtype),
            **{k: v for k, v in config.items() if k not in slots},
        )
    )


def _reasoning(config: Any, num_predicates: int, dtype: Any) -> nn.Module | None:
    section, given = config.reasoning, {"dtype": dtype}
    if section.name == "none":
        return None
    if section.name == "transformer":
        wide = {"embed_dim": config.embed_dim}
        _check_heads(section.num_heads, wide, "model.reasoning.num_heads")
        given["dropout"] = config.dropout
    if section.name == "graphs":
        given["num_predicates"] = num_predicates
    return _part(section, _REASONINGS, "model.reasoning", **given)


def _part(section: Any, known: dict[str, type[nn.Module]], field: str, **given: Any) -> nn.Module:
    """The module that a section of the configuration names, with its other fields."""
    if section.name not in known:
        raise UserError(f"{field}.name={section.name!r} is not known; use {', '.join(known)}")
    fields = {k: v for k, v in section.items() if k != "name"}
    return known[section.name](**fields, **given)


_BUILDERS = {"teran": _teran, "matcher": _matcher}


def build_model(
    config: Any, feature_width: int, vocab_size: int, num_predicates: int = 0
) -> nn.Module:
    """The model of the section `model` of a configuration.

    Args:
      config: config.model.
      feature_width: width of the region features.
      vocab_size: number of tokens of the tokenizer.
      num_predicates: number of predicates of the data's scene graphs; 0: there are none.

    Raises:
      UserError: the name is not known, or sizes do not fit each other.
    """
    if config.name not in _BUILDERS:
        raise UserError(f"model.name={config.name!r} is not known; use {', '.join(_BUILDERS)}")
    return _BUILDERS[config.name](config, feature_width, vocab_size, num_predicates)
