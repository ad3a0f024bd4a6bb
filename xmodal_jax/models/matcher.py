"""The family of region-word matching models, assembled from parts.

Two encoders that never see each other and a similarity that does. Each model of the family is a
choice of parts (`configs/models.py`): VSE++ (Faghri et al., BMVC 2018), VSE-infinity (Chen et al.,
CVPR 2021), VSRN (Li et al., ICCV 2019, without its language model), SCAN (Lee et al., ECCV 2018),
SGRAF (Diao et al., AAAI 2021), CHAN (Pan et al., CVPR 2023) and CMSEI-R (see `cmsei`).

    regions -> projection -> reasoning -> tokens, pooled \\
                                                          similarity -> score
    tokens  -> text encoder             -> tokens, pooled /
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.bert import BertConfig
from xmodal_jax.models.image import RegionProjection
from xmodal_jax.models.pooling import Pooling
from xmodal_jax.models.similarity import AlignmentSimilarity
from xmodal_jax.models.text import GruConfig, TextEncoder
from xmodal_jax.ops.embeddings import Embeddings, l2_normalize, without_padding


@dataclasses.dataclass(frozen=True)
class MatcherConfig:
    """Parts and sizes."""

    text: BertConfig | GruConfig
    similarity: nn.Module  # of `similarity` or `cmsei`
    reasoning: nn.Module | None = None  # of `reasoning`, over the regions
    embed_dim: int = 1024
    projection: str = "linear"  # of the region features; or residual-mlp (VSE-infinity)
    unit_tokens: bool = False  # regions and words get unit length before reasoning and pooling
    image_pooling: str = "mean"
    text_pooling: str = "mean"
    dropout: float = 0.0
    dtype: str = "float32"  # of computation; parameters are float32


class Matcher(nn.Module):
    """Encoders and pair score of one model of the family."""

    config: MatcherConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.region_projection = RegionProjection(c.projection, c.embed_dim, dtype)
        self.reasoning = c.reasoning.clone() if c.reasoning is not None else None
        self.text_encoder = TextEncoder(c.text, c.embed_dim, c.dropout, dtype)
        self.image_pool = Pooling(c.image_pooling, dtype, cls_slot=False, field="image_pooling")
        self.text_pool = Pooling(c.text_pooling, dtype, cls_slot=False, field="text_pooling")
        self.region_dropout = nn.Dropout(c.dropout)
        self.similarity = c.similarity.clone()

    @property
    def kind(self) -> str:
        """What a search index needs: "vector", "tokens" or "pair"; see `similarity`."""
        return self.config.similarity.kind

    @property
    def alignment(self) -> tuple[str, bool] | None:
        """mode and fill_zero of `alignment_score`; None for a model that is scored otherwise."""
        similarity = self.config.similarity
        return (similarity.mode, False) if isinstance(similarity, AlignmentSimilarity) else None

    def encode_image(
        self, batch: Mapping[str, jax.Array], deterministic: bool = True
    ) -> Embeddings:
        """Encodes regions [B, R, F], region_mask [B, R] and what the reasoning reads of a batch."""
        mask = batch["region_mask"]
        x = self.region_dropout(without_padding(batch["regions"], mask), deterministic)
        x = self.region_projection(x)
        x = l2_normalize(x) if self.config.unit_tokens else x
        if self.reasoning is not None:
            x = self.reasoning(x, mask, batch, deterministic)
        return _embeddings(x, mask, self.image_pool)

    def encode_text(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> Embeddings:
        """Encodes tokens [B, W], token_mask [B, W], laid out [CLS] words [SEP] padding.

        The embeddings have W - 1 positions: [CLS] is left out and [SEP] masked.
        """
        x, mask = self.text_encoder(batch["tokens"], batch["token_mask"], deterministic)
        return _embeddings(l2_normalize(x) if self.config.unit_tokens else x, mask, self.text_pool)

    def score(self, image: Embeddings, caption: Embeddings) -> jax.Array:
        """Score of one image with one caption, without batch axes."""
        return self.similarity(image, caption)

    def __call__(self, batch: Mapping[str, jax.Array]) -> tuple[Embeddings, Embeddings]:
        """Encodes both sides and scores the first pair; used for initialisation."""
        image, caption = self.encode_image(batch), self.encode_text(batch)
        first = lambda embeddings: jax.tree.map(lambda x: x[0], embeddings)
        self.score(first(image), first(caption))
        return image, caption


def _embeddings(x: jax.Array, mask: jax.Array, pool: nn.Module) -> Embeddings:
    return Embeddings(tokens=l2_normalize(x), mask=mask, pooled=l2_normalize(pool(x, mask)))
