"""What is minimised: a batch is augmented, encoded and scored, and its scores meet the losses."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from xmodal_jax import losses
from xmodal_jax.augment import Batch, augment
from xmodal_jax.errors import UserError
from xmodal_jax.models.batch import IMAGE_FIELDS, TEXT_FIELDS
from xmodal_jax.models.scorers import check_teacher, pair_scorer, teacher_scorer
from xmodal_jax.ops.alignment import (
    PairScorer,
    candidate_scores,
    draw_candidates,
    map_in_parts,
    pooled_score,
    score_matrix,
)
from xmodal_jax.ops.best_regions import MODES, best_region_scores, check_mode
from xmodal_jax.ops.embeddings import Embeddings

Params = Any
SCORERS = ("auto", "pairs", "mined", "fused")


def encode_in_parts(
    encode: Callable[[Batch, jax.Array], Embeddings], batch: Batch, key: jax.Array, parts: int
) -> Embeddings:
    """Embeddings of a batch, of which one part's activations are held at a time (GradCache).

    The backward pass encodes each part again; what follows sees all embeddings at once, so that
    negatives come from the whole batch (Gao et al., RepL4NLP 2021).

    Args:
      encode: (part of the batch, key) -> its embeddings.
      batch: arrays [B, ...].
      key: each part gets its own.
      parts: divides B.
    """
    if parts == 1:
        return encode(batch, key)
    # A key for each row, of which a part uses its first: the map splits rows and nothing else.
    rows = next(iter(batch.values())).shape[0]
    keys = jax.random.split(key, rows)
    return map_in_parts(lambda part: encode(part[0], part[1][0]), (batch, keys), parts)


def mined_hinge_loss(
    score: PairScorer,
    fixed: jax.Array,
    images: Embeddings,
    captions: Embeddings,
    positives: jax.Array,
    margin: float,
) -> jax.Array:
    """`losses.hinge_loss` of the hardest negatives, of which 3 B pairs are scored for a gradient.

    Args:
      score: of one pair, differentiable.
      fixed: [B, B] scores without a gradient, by which the negatives are chosen.
      images, captions: [B, ...]; positives: [B, B] bool.
    """
    found = losses.hardest_negatives(fixed, positives, margin)
    pairs = jax.vmap(score)
    chosen = lambda items, index: jax.tree.map(lambda x: x[index], items)
    return losses.hardest_hinge_loss(
        pairs(images, captions),
        pairs(images, chosen(captions, found.captions)),
        pairs(chosen(images, found.images), captions),
        found,
        margin,
    )


class Objective:
    """(parameters, batch, step, key) -> loss, with dropout and augmentation."""

    def __init__(
        self, model: nn.Module, config: Any, mask_id: int, mesh: Mesh | None = None
    ) -> None:
        """config: the whole configuration; mask_id: token that replaces masked words.

        mesh: over whose axis "data" the batch is split; None: one device.
        """
        self._model, self._config, self._mask_id = model, config, mask_id
        self._mesh, self._devices = mesh, mesh.shape["data"] if mesh else 1
        self._loss = losses.make_loss(config.loss)
        self._check(config.loss)
        self._mines = self._can_mine() and self._mining_pays()

    def _can_mine(self) -> bool:
        """Distillation needs all scores, and those of vectors are one product."""
        c = self._config.loss
        return c.kind == "hinge" and c.distill_weight <= 0 and self._model.kind != "vector"

    def _mining_pays(self) -> bool:
        if self._config.scorer in ("pairs", "mined"):
            return self._config.scorer == "mined"
        # Fake devices may wait for ever: XLA for CPU (JAX 0.10) starts collectives that do not
        # depend on each other in any order, and has fewer threads than there are devices.
        return self._devices == 1 or jax.default_backend() != "cpu"

    def _check(self, c: Any) -> None:
        if self._config.scorer not in SCORERS:
            raise UserError(
                f"scorer={self._config.scorer!r} is not known; use {' or '.join(SCORERS)}"
            )
        if self._config.scorer == "mined" and not self._can_mine():
            raise UserError(
                "scorer='mined' is for loss.kind=hinge without distillation, and a model of kind "
                f"tokens or pair; this one has {c.kind} and {self._model.kind}, use auto"
            )
        if self._config.scorer == "fused":
            self._check_fused()
        for field in ("candidates", "pooled_weight", "distill_weight"):
            if c[field] < 0:
                raise UserError(f"loss.{field}={c[field]}; give 0 or more")
        if c.candidates > 0 and c.pooled_weight <= 0:
            raise UserError(
                f"loss.candidates={c.candidates} are drawn by the pooled vectors, which "
                f"loss.pooled_weight={c.pooled_weight} does not train; set that to 1"
            )
        if c.candidates > 0 and (c.distill_weight > 0 or c.kind == "sigmoid"):
            raise UserError(
                f"loss.candidates={c.candidates} leaves pairs unscored, which loss.kind=sigmoid "
                "and loss.distill_weight need; set it to 0"
            )
        if c.distill_weight > 0:
            check_teacher(self._model)

    def _check_fused(self) -> None:
        if self._model.alignment is None:
            raise UserError(
                "scorer='fused' is for models that are scored by the alignment of words and "
                f"regions, as teran and chan; {self._config.model.name} is not, use auto"
            )
        check_mode(self._model.alignment[0])
        if jax.default_backend() not in ("tpu", "cpu"):
            raise UserError(
                "scorer='fused' is a kernel for TPUs, and interpreted on CPUs; this is a "
                f"{jax.default_backend()}, use auto"
            )

    def __call__(self, params: Params, batch: Batch, step: jax.Array, key: jax.Array) -> jax.Array:
        """The loss of one batch."""
        keys = jax.random.split(key, 4)
        batch = augment(keys[0], batch, mask_id=self._mask_id, **dict(self._config.augment))
        images = self._encode(params, batch, IMAGE_FIELDS, "encode_image", keys[1])
        captions = self._encode(params, batch, TEXT_FIELDS, "encode_text", keys[2])
        positives = losses.positive_pairs(batch["image_id"], self._config.loss.positives)

        c = self._config.loss
        score, total = pair_scorer(self._model, params), jnp.zeros(())
        pooled = self._matrix(pooled_score, images, captions, "vector")
        if c.pooled_weight > 0:
            total += c.pooled_weight * self._loss(pooled, positives, step)
        if c.candidates > 0:
            fixed = jax.lax.stop_gradient(pooled)
            drawn = draw_candidates(keys[3], fixed, positives, c.candidates, c.temperature)
            scores, scored = candidate_scores(score, images, captions, drawn, self._devices)
            # A pair that was not scored is no negative.
            return total + self._loss(scores, positives | ~scored, step)
        if self._mines:
            return total + self._mined_loss(params, images, captions, positives, step)
        scores = self._all_scores(score, images, captions)
        total += self._loss(scores, positives, step)
        if c.distill_weight > 0:
            teacher = teacher_scorer(self._model, params)
            taught = self._matrix(teacher, images, captions, "tokens")
            total += self._distillation(scores, taught, positives, step)
        return total

    def _mined_loss(
        self,
        params: Params,
        images: Embeddings,
        captions: Embeddings,
        positives: jax.Array,
        step: jax.Array,
    ) -> jax.Array:
        """The hinge loss; its gradient needs the scores of 3 B of the B * B pairs."""
        c = self._config.loss
        score = pair_scorer(self._model, params)

        def hardest() -> jax.Array:
            fixed = jax.lax.stop_gradient((images, captions))
            fixed_score = pair_scorer(self._model, jax.lax.stop_gradient(params))
            scores = self._all_scores(fixed_score, *fixed)
            return mined_hinge_loss(score, scores, images, captions, positives, c.margin)

        if c.sum_steps <= 0:
            return hardest()

        def every() -> jax.Array:
            return self._loss(self._all_scores(score, images, captions), positives, step)

        return jax.lax.cond(step < c.sum_steps, every, hardest)

    def _encode(
        self, params: Params, batch: Batch, fields: tuple[str, ...], method: str, key: jax.Array
    ) -> Embeddings:
        def encode(part: Batch, key: jax.Array) -> Embeddings:
            rngs = {"dropout": key}
            return self._model.apply({"params": params}, part, False, method=method, rngs=rngs)

        inputs = {name: batch[name] for name in fields if name in batch}
        return encode_in_parts(encode, inputs, key, self._config.train.encode_parts)

    def _all_scores(self, score: PairScorer, images: Embeddings, captions: Embeddings) -> jax.Array:
        """The model's scores of all pairs, in the way of `config.scorer`."""
        scorer, alignment = self._config.scorer, self._model.alignment
        if scorer == "pairs" or alignment is None or alignment[0] not in MODES:
            return self._matrix(score, images, captions, self._model.kind)
        return best_region_scores(
            images,
            captions,
            mode=alignment[0],
            fill_zero=alignment[1],
            chunk=self._config.loss.chunk,
            mesh=self._mesh,
            fused=scorer == "fused",
        )

    def _matrix(
        self, score: PairScorer, images: Embeddings, captions: Embeddings, kind: str
    ) -> jax.Array:
        chunk, devices = self._config.loss.chunk, self._devices
        return score_matrix(score, images, captions, chunk=chunk, kind=kind, devices=devices)

    def _distillation(
        self, scores: jax.Array, teacher: jax.Array, positives: jax.Array, step: jax.Array
    ) -> jax.Array:
        """The teacher's own loss, and that of a model which ranks otherwise than the teacher."""
        c = self._config.loss
        ranking = losses.listwise_distillation(
            scores,
            teacher,
            temperature=c.distill_temperature,
            teacher_temperature=c.teacher_temperature,
        )
        return self._loss(teacher, positives, step) + c.distill_weight * ranking
