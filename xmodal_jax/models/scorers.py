"""A model and its parameters as functions of one image and one caption."""

from typing import Any

import flax.linen as nn

from xmodal_jax.errors import UserError
from xmodal_jax.ops.alignment import PairScorer


def pair_scorer(model: nn.Module, params: Any) -> PairScorer:
    """The model's score of one image with one caption as a function of embeddings only."""
    return lambda image, caption: model.apply({"params": params}, image, caption, method="score")


def check_teacher(model: nn.Module) -> None:
    """Raises a UserError if the model has no second score to learn from."""
    if not hasattr(model, "teacher"):
        raise UserError(
            "loss.distill_weight needs a model with a teacher, such as tern_distilled; "
            f"{type(model).__name__} has none, set it to 0"
        )


def teacher_scorer(model: nn.Module, params: Any) -> PairScorer:
    """The score that teaches the model's own while it is trained; see `loss.distill_weight`."""
    return lambda image, caption: model.apply({"params": params}, image, caption, method="teacher")
