"""Detection of the plateau where a hinge loss with hardest negatives gets stuck."""

from typing import Any

PATIENCE = 200  # steps
_CLOSE = 0.01  # of the level


def collapse_level(config: Any, batch_size: int) -> float | None:
    """Loss of a model that gives every pair the same score; None if the loss has no such level.

    2 B m for the hinge loss with hardest negatives, and nearly that while all of them count; the
    loss on the pooled vectors, if there is one, adds its own.

    Args:
      config: the section `loss` of the configuration.
      batch_size: B.
    """
    if config.kind != "hinge" or config.distill_weight > 0:
        return None
    return 2 * batch_size * config.margin * (1 + config.pooled_weight)


class CollapseWatch:
    """Says once that the loss has been within 1 % of its collapse level for PATIENCE steps."""

    def __init__(self, level: float | None) -> None:
        self._level, self._steps, self._said = level, 0, False

    def update(self, loss: float) -> str | None:
        """The warning, at the step where it becomes due."""
        if self._level is None or self._said:
            return None
        close = abs(loss - self._level) < _CLOSE * self._level
        self._steps = self._steps + 1 if close else 0
        if self._steps < PATIENCE:
            return None
        self._said = True
        return (
            f"the loss has stayed at {self._level:.4g}, that of equal scores for all pairs, for "
            f"{PATIENCE} steps: the model has collapsed. Start anew in another "
            "--workdir with loss.sum_steps of about an epoch (all negatives before the hardest), "
            "a lower optimizer.learning_rate, or loss.kind=info_nce"
        )
