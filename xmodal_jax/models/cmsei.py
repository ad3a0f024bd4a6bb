"""CMSEI-R, a reconstruction in the spirit of CMSEI: Cross-modal Semantic Enhanced Interaction.

Ge et al., "Cross-modal Semantic Enhanced Interaction for Image-Sentence Retrieval", WACV 2023
(arXiv 2210.08908), has three stages: (a) reasoning over the objects of an image along a spatial and
a semantic graph; (b) interactive attention between objects and words together with their
alignment; (c) cross-level attention between objects and the sentence, and words and the image. Its
public text fixes these stages and not their equations or constants, so this is NOT the authors'
model and claims none of their numbers. Stage (a) is `reasoning.GraphReasoning`, in the form of CGMN
and VSRN; (b) and (c) have the form of the refinement and guidance cells of DIME (Qu et al., SIGIR
2021), with layer normalisation in the place of its batch normalisation and the refinement starting
as the identity. Each part is a switch.

With a single word or region, guidance scales each number by its own size, that is by its sign: such
a score is right but no smooth function of its input.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmodal_jax.models.layers import Dtype
from xmodal_jax.ops.alignment import pooled_score
from xmodal_jax.ops.attention import attention_weights, unit_over_items
from xmodal_jax.ops.embeddings import Embeddings, l2_normalize, without_padding


class InteractiveAttention(nn.Module):
    """Stage (b): each query is modulated by what it attends to on the other side.

    q + W_2 relu(W_1 (q * tanh(s) + h)), where s and h are the attended scale and shift of the
    contexts, s = sum_b a_b (W_s c_b + b_s) and h likewise. Rows of a sum to 1, so that the dense
    layers are applied to the contexts, once for each item, and not to every attended vector.
    """

    smooth: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries: jax.Array,
        query_mask: jax.Array,
        contexts: jax.Array,
        context_mask: jax.Array,
    ) -> jax.Array:
        """queries [N, D], contexts [M, D] with their masks -> [N, D]; one pair, no batch axis."""
        width = queries.shape[-1]
        queries = without_padding(queries, query_mask)
        contexts = without_padding(contexts, context_mask)
        dense = lambda name: nn.Dense(width, dtype=self.dtype, name=name)
        weights = attention_weights(queries, query_mask, contexts, context_mask, self.smooth)
        weights = weights.astype(self.dtype)
        scale = weights @ dense("scale")(contexts)
        shift = weights @ dense("shift")(contexts)
        hidden = jax.nn.relu(dense("mlp_in")(queries * jnp.tanh(scale) + shift))
        # Zero at first, as the norms of the graph convolutions: training starts from plain regions.
        zeros = nn.initializers.zeros
        out = nn.Dense(width, kernel_init=zeros, dtype=self.dtype, name="mlp_out")
        return queries + out(hidden)


class CrossLevelGuidance(nn.Module):
    """Stage (c): the parts of one side weighted, dimension by dimension, by the other's whole.

    u * (1 + unit((W u + b) * g)), the unit length taken over the parts.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, parts: jax.Array, mask: jax.Array, whole: jax.Array) -> jax.Array:
        """parts [N, D], mask [N], whole [D] -> [N, D]; one pair, no batch axis."""
        parts = without_padding(parts, mask)
        mapped = nn.Dense(parts.shape[-1], dtype=self.dtype, name="map")(parts)
        return parts * (1 + unit_over_items(mapped * whole[None, :], mask))


class PeakMeanPooling(nn.Module):
    """unit(mean_n norm(x_n) + max_n norm(x_n)): x [N, D], mask [N] -> [D], as in DIME."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(without_padding(x, mask))
        mean = jnp.sum(without_padding(x, mask), 0) / jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)
        # By index: the derivative of max looks for its result among its inputs, and is 0 / 0 where
        # XLA computes these twice with unlike rounding.
        first = jnp.argmax(jnp.where(mask[:, None], x, -jnp.inf), 0)
        peak = jnp.sum(jnp.where(jnp.arange(x.shape[0])[:, None] == first[None, :], x, 0), 0)
        return l2_normalize(mean + jnp.where(jnp.any(mask), peak, 0))


class CmseiSimilarity(nn.Module):
    """Stages (b) and (c) and the score of one pair.

    S = <pool(V''), s> + <pool(w''), v> + global_weight * <v, s>, with V'' the regions and w'' the
    words after both stages, v and s the pooled vectors of image and caption. <v, s> can retrieve
    alone: it is the first stage whose best candidates this score re-ranks.
    """

    interaction: bool = True
    object_sentence: bool = True
    word_image: bool = True
    smooth_regions: float = 4.0  # inverse temperature where regions attend to words
    smooth_words: float = 9.0
    global_weight: float = 1.0
    dtype: Dtype = jnp.float32

    kind = "pair"

    @nn.compact
    def __call__(self, image: Embeddings, caption: Embeddings) -> jax.Array:
        """One image with one caption, without batch axes -> scalar."""
        regions, words = image.tokens, caption.tokens
        if self.interaction:
            attend = lambda smooth, name: InteractiveAttention(smooth, self.dtype, name=name)
            # Both from the encoders' outputs: neither side sees the other already refined.
            regions, words = (
                attend(self.smooth_regions, "regions_to_words")(
                    regions, image.mask, words, caption.mask
                ),
                attend(self.smooth_words, "words_to_regions")(
                    words, caption.mask, regions, image.mask
                ),
            )
        if self.object_sentence:
            guide = CrossLevelGuidance(self.dtype, name="object_sentence_guidance")
            regions = guide(regions, image.mask, caption.pooled)
        if self.word_image:
            guide = CrossLevelGuidance(self.dtype, name="word_image_guidance")
            words = guide(words, caption.mask, image.pooled)
        pool = lambda name: PeakMeanPooling(self.dtype, name=name)
        wide = jnp.promote_types(image.pooled.dtype, jnp.float32)
        dot = lambda a, b: jnp.dot(a, b, preferred_element_type=wide)
        score = dot(pool("region_pooling")(regions, image.mask), caption.pooled)
        score += dot(pool("word_pooling")(words, caption.mask), image.pooled)
        return score + self.global_weight * pooled_score(image, caption)
