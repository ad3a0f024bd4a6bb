"""Models by name. A model encodes images and captions and scores one pair; see `teran.Teran`."""

import dataclasses
from typing import Any

import flax.linen as nn

from xmodal_jax.errors import UserError
from xmodal_jax.models import pretrained
from xmodal_jax.models.bert import BertConfig
from xmodal_jax.models.teran import Teran, TeranConfig


def _teran(config: Any, feature_width: int, vocab_size: int) -> Teran:
    text = config.text
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
    sizes = dataclasses.replace(sizes, dropout=text.dropout)
    wide = {"region features": feature_width, "embed_dim": config.embed_dim}
    for what, width in wide.items():
        if width % config.num_heads:
            raise UserError(
                f"model.num_heads={config.num_heads} does not divide {what}, {width} wide; "
                "use a divisor"
            )
    if sizes.width % sizes.num_heads:
        raise UserError(
            f"model.text.num_heads={sizes.num_heads} does not divide text.width={sizes.width}; "
            "use a divisor"
        )
    others = {k: v for k, v in config.items() if k not in ("name", "text")}
    return Teran(TeranConfig(text=sizes, feature_width=feature_width, **others))


_BUILDERS = {"teran": _teran}


def build_model(config: Any, feature_width: int, vocab_size: int) -> nn.Module:
    """The model of the section `model` of a configuration.

    Args:
      config: config.model.
      feature_width: width of the region features.
      vocab_size: number of tokens of the tokenizer.

    Raises:
      UserError: the name is not known.
    """
    if config.name not in _BUILDERS:
        raise UserError(f"model.name={config.name!r} is not known; use {', '.join(_BUILDERS)}")
    return _BUILDERS[config.name](config, feature_width, vocab_size)
