"""Contrastive losses: (scores, positives) -> scalar. They read the score matrix and nothing else.

Row i and column i of `scores` [B, B] are a pair. `positives` [B, B] is True where image and caption
belong together: entries off the diagonal that are positive are never used as negatives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xmodal_jax.errors import UserError


def _violations(scores: jax.Array, own: jax.Array, negative: jax.Array, margin: float) -> jax.Array:
    # where, not maximum: the derivative at exactly 0 is 1, as in the published implementations.
    # Not cost >= 0: a NaN score has to come out as a NaN loss.
    cost = margin + scores - own
    return jnp.where(negative & ~(cost < 0), cost, 0.0)


class Hardest(NamedTuple):
    """The negatives that a hardest-negative loss depends on.

    captions: int32 [B], for each image; violates: bool [B], whether it comes within the margin.
    images, image_violates: the same for each caption.
    """

    captions: jax.Array
    violates: jax.Array
    images: jax.Array
    image_violates: jax.Array


def hardest_negatives(scores: jax.Array, positives: jax.Array, margin: float) -> Hardest:
    """Finds them in scores [B, B]; positives [B, B] are no negatives. No gradient flows back."""
    scores = jax.lax.stop_gradient(scores)
    own = jnp.diagonal(scores)[:, None]

    def find(scores: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
        # By index and not max: among equal costs the gradient goes to one entry, not to a mixture.
        index = jnp.argmax(_violations(scores, own, negative, margin), axis=1)
        chosen = lambda x: jnp.take_along_axis(x, index[:, None], axis=1)[:, 0]
        # Not cost >= 0: a NaN score has to come out as a NaN loss.
        return index, chosen(negative) & ~(margin + chosen(scores) - own[:, 0] < 0)

    return Hardest(*find(scores, ~positives), *find(scores.T, ~positives.T))


def hardest_hinge_loss(
    own: jax.Array, by_image: jax.Array, by_caption: jax.Array, found: Hardest, margin: float
) -> jax.Array:
    """`hinge_loss` with the hardest negatives from the scores of at most 3 B pairs.

    Args:
      own: [B] scores of the pairs; by_image: [B] of each image with its hardest caption;
      by_caption: [B] of each caption with its hardest image.
    """
    of_images = jnp.where(found.violates, margin + by_image - own, 0.0)
    of_captions = jnp.where(found.image_violates, margin + by_caption - own, 0.0)
    return jnp.sum(of_images) + jnp.sum(of_captions)


def hinge_loss(
    scores: jax.Array, positives: jax.Array, *, margin: float = 0.2, hardest: bool = True
) -> jax.Array:
    """Bidirectional triplet hinge loss, summed over the batch (VSE++, Faghri et al., BMVC 2018).

    Args:
      scores: [B, B], images in rows, captions in columns.
      positives: [B, B] bool.
      margin: by how much a pair must score above its negatives.
      hardest: only the hardest negative of each row and column counts, else all of them.

    Returns:
      sum_i max(0, m + s_ij - s_ii) + max(0, m + s_ji - s_ii) over the negatives j.
    """
    own = jnp.diagonal(scores)
    if hardest:
        found, rows = hardest_negatives(scores, positives, margin), jnp.arange(len(own))
        by_image, by_caption = scores[rows, found.captions], scores[found.images, rows]
        return hardest_hinge_loss(own, by_image, by_caption, found, margin)
    by_image = _violations(scores, own[:, None], ~positives, margin)
    by_caption = _violations(scores.T, own[:, None], ~positives.T, margin)
    return jnp.sum(by_image) + jnp.sum(by_caption)


def info_nce_loss(
    scores: jax.Array, positives: jax.Array, *, temperature: float = 0.05
) -> jax.Array:
    """Symmetric InfoNCE (van den Oord et al., 2018; CLIP), mean over the batch and directions.

    Args:
      scores: [B, B]; positives: [B, B] bool.
      temperature: scores are divided by it.
    """
    logits = scores / temperature
    own = jnp.diagonal(logits)
    other_positive = positives & ~jnp.eye(scores.shape[0], dtype=bool)
    logits = jnp.where(other_positive, -jnp.inf, logits)
    by_image = jax.nn.logsumexp(logits, axis=1) - own
    by_caption = jax.nn.logsumexp(logits, axis=0) - own
    return jnp.mean(by_image + by_caption) / 2


def sigmoid_loss(
    scores: jax.Array, positives: jax.Array, *, temperature: float = 0.1, bias: float = -10.0
) -> jax.Array:
    """Pairwise sigmoid loss (SigLIP, Zhai et al., ICCV 2023), summed over pairs, mean over images.

    Args:
      scores: [B, B]; positives: [B, B] bool.
      temperature: scores are divided by it; bias is added after that.
    """
    logits = scores / temperature + bias
    signs = jnp.where(positives, 1.0, -1.0)
    return -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / scores.shape[0]


def listwise_distillation(
    scores: jax.Array,
    teacher: jax.Array,
    *,
    temperature: float = 0.05,
    teacher_temperature: float = 0.05,
) -> jax.Array:
    """ListNet in both directions (Cao et al., ICML 2007): rank as the teacher ranks.

    Args:
      scores, teacher: [B, B]; no gradient flows to the teacher.
      temperature, teacher_temperature: the two are divided by them.

    Returns:
      Cross entropy of softmax(scores) under softmax(teacher), mean over rows and columns.
    """
    target = jax.lax.stop_gradient(teacher) / teacher_temperature
    logits = scores / temperature

    def over(axis: int) -> jax.Array:
        chance = jax.nn.softmax(target, axis=axis)
        return -jnp.mean(jnp.sum(chance * jax.nn.log_softmax(logits, axis=axis), axis=axis))

    return (over(0) + over(1)) / 2


def make_loss(config: Any) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """The loss of the section `loss` of a configuration: (scores, positives, step) -> scalar."""
    if config.kind == "info_nce":
        return lambda s, p, step: info_nce_loss(s, p, temperature=config.temperature)
    if config.kind == "sigmoid":
        return lambda s, p, step: sigmoid_loss(
            s, p, temperature=config.temperature, bias=config.bias
        )
    if config.kind != "hinge":
        raise UserError(f"loss.kind={config.kind!r} is not known; use hinge, info_nce or sigmoid")

    def hinge(scores: jax.Array, positives: jax.Array, step: jax.Array) -> jax.Array:
        hardest = hinge_loss(scores, positives, margin=config.margin)
        if config.sum_steps <= 0:
            return hardest
        # The mean violation at first: the hardest ones of an untrained model collapse it.
        every = hinge_loss(scores, positives, margin=config.margin, hardest=False)
        return jnp.where(step < config.sum_steps, every / scores.shape[0], hardest)

    return hinge


def positive_pairs(image_id: jax.Array, kind: str) -> jax.Array:
    """Which entries [B, B] of the score matrix belong together.

    Args:
      image_id: [B].
      kind: "image": those of one image; "diagonal": the pairs of the batch only, as published.
    """
    if kind == "diagonal":
        return jnp.eye(image_id.shape[0], dtype=bool)
    if kind != "image":
        raise UserError(f"loss.positives={kind!r} is not known; use image or diagonal")
    return image_id[:, None] == image_id[None, :]
