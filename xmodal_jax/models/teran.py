"""TERAN: Transformer Encoder Reasoning and Alignment Network, and TERN, its pooled form.

Messina et al., "Fine-grained Visual Textual Alignment for Cross-Modal Retrieval using Transformer
Encoders", TOMM 2021 (arXiv 2008.05231); TERN: ICPR 2020 (arXiv 2004.09144). Regions and words go
through separate encoders and meet in the alignment score only, so that both sides can be indexed.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.bert import Bert, BertConfig
from xmodal_jax.models.image import RegionEncoder
from xmodal_jax.models.layers import Transformer
from xmodal_jax.models.pooling import Pooling
from xmodal_jax.ops.alignment import alignment_score, pooled_score
from xmodal_jax.ops.embeddings import Embeddings, l2_normalize


@dataclasses.dataclass(frozen=True)
class TeranConfig:
    """Hyper-parameters; the defaults are those of the published models."""

    text: BertConfig = dataclasses.field(default_factory=BertConfig)
    text_layers: int = 0  # transformer layers after BERT, at its width
    feature_width: int = 2048  # of the region features and of the image transformer
    box_encoding: str = "concat-and-process"
    region_layers: int = 4
    embed_dim: int = 1024
    top_layers: int = 2  # layers after the projection to embed_dim, for each side
    shared_top: bool = False  # one stack of top layers for both sides
    num_heads: int = 4
    mlp_dim: int = 2048
    dropout: float = 0.1
    score: str = "alignment"  # alignment (TERAN) or pooled (TERN)
    alignment: str = "MrSw"
    pooling: str = "first"
    # The public code's handling of padding and of the last word piece, which its weights expect.
    teran_parity: bool = False
    dtype: str = "float32"  # of computation; parameters are float32


class Teran(nn.Module):
    """Encoders and pair score of TERAN (score="alignment") or TERN (score="pooled")."""

    config: TeranConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        stack = lambda layers: Transformer(layers, c.num_heads, c.mlp_dim, c.dropout, dtype)
        self.bert = Bert(c.text, dtype)
        self.text_transformer = stack(c.text_layers)
        self.region_encoder = RegionEncoder(
            c.box_encoding, c.region_layers, c.num_heads, c.mlp_dim, c.dropout, dtype
        )
        self.image_projection = nn.Dense(c.embed_dim, dtype=dtype)
        self.text_projection = nn.Dense(c.embed_dim, dtype=dtype)
        self.text_top = stack(c.top_layers)
        self.image_top = self.text_top if c.shared_top else stack(c.top_layers)
        self.text_pooling = Pooling(c.pooling, dtype)
        self.image_pooling = Pooling(c.pooling, dtype)

    @property
    def kind(self) -> str:
        """What a search index needs: "vector" (one dot product) or "tokens" (late interaction)."""
        return "vector" if self.config.score == "pooled" else "tokens"

    @property
    def alignment(self) -> tuple[str, bool] | None:
        """mode and fill_zero of `alignment_score`; None for a model that is scored otherwise."""
        c = self.config
        return None if c.score == "pooled" else (c.alignment, c.teran_parity)

    def encode_image(
        self, batch: Mapping[str, jax.Array], deterministic: bool = True
    ) -> Embeddings:
        """Encodes regions [B, R, F], boxes [B, R, 4], region_mask [B, R] of a batch."""
        x, mask = self.region_encoder(
            batch["regions"], batch["boxes"], batch["region_mask"], deterministic
        )
        self.sow("intermediates", "region_encoded", x)
        x = self.image_top(self.image_projection(x), mask, deterministic)
        return Embeddings(
            tokens=l2_normalize(x)[:, 1:],
            mask=mask[:, 1:],
            pooled=l2_normalize(self.image_pooling(x, mask)),
        )

    def encode_text(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> Embeddings:
        """Encodes tokens [B, W], token_mask [B, W] of a batch, laid out [CLS] words [SEP] padding.

        The embeddings have W - 1 positions: [CLS] is left out and [SEP] masked. With teran_parity
        W - 3, the last word piece masked too: the public code drops one token too many.
        """
        mask = batch["token_mask"]
        x = self.bert(batch["tokens"], mask, deterministic)
        x = self.text_transformer(x, mask, deterministic)
        self.sow("intermediates", "text_hidden", x)
        x = self.text_top(self.text_projection(x), mask, deterministic)
        unit = l2_normalize(x)
        self.sow("intermediates", "text_encoded", unit)
        dropped = 2 if self.config.teran_parity else 1
        words = jnp.arange(mask.shape[1])[None, :] < jnp.sum(mask, 1, keepdims=True) - dropped
        kept = slice(1, -2) if self.config.teran_parity else slice(1, None)
        return Embeddings(
            tokens=unit[:, kept],
            mask=words[:, kept],
            pooled=l2_normalize(self.text_pooling(x, mask)),
        )

    def score(self, image: Embeddings, caption: Embeddings) -> jax.Array:
        """Score of one image with one caption, without batch axes."""
        if self.config.score == "pooled":
            return pooled_score(image, caption)
        return self.teacher(image, caption)

    def teacher(self, image: Embeddings, caption: Embeddings) -> jax.Array:
        """Alignment score of one pair, from which pooled vectors can learn while training.

        As ALADIN (Messina et al., CBMI 2022) distils alignment scores into vectors.
        """
        c = self.config
        return alignment_score(image, caption, mode=c.alignment, fill_zero=c.teran_parity)

    def __call__(self, batch: Mapping[str, jax.Array]) -> tuple[Embeddings, Embeddings]:
        """Encodes both sides; used for initialisation."""
        return self.encode_image(batch), self.encode_text(batch)
