"""What follows from the number of updates of a training: the learning rate "auto", and how often it saves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from querylift.trainer.training_config import TrainingLoopOptions

LEAST_CHECKPOINTS = 4
"""Checkpoints that every training of as many updates writes, unless it writes none at all."""
ADAPTER_RATE_TIMES_UPDATES = 5e-3
"""The rate "auto" times the number of updates, for an adapter. AdamW moves a weight by about the rate in each update."""
WHOLE_MODEL_RATE_TIMES_UPDATES = 5e-4
"""The same when every weight is trained: such a training needs about a tenth of an adapter's rate."""
HIGHEST_AUTO_RATE = 2e-4
"""The highest rate that "auto" gives."""
LEAST_MARGIN_RISE = 0.1
"""A training on pairs that raises its margin by less has hardly moved the student."""


def count_updates(options: TrainingLoopOptions, *, examples: int, processes: int) -> int:
    """Return the number of updates of the weights in a training on `examples` rows."""
    batches = math.ceil(math.ceil(examples / options.batch_size) / processes)
    return max(1, math.ceil(options.epochs * math.ceil(batches / options.gradient_accumulation)))


def choose_learning_rate(rate: float | Literal["auto"], *, updates: int, trains_all_weights: bool) -> float:
    """Return `rate`, or for "auto" a rate that moves the weights as far in few updates as in many."""
    if rate != "auto":
        return rate
    distance = WHOLE_MODEL_RATE_TIMES_UPDATES if trains_all_weights else ADAPTER_RATE_TIMES_UPDATES
    return min(HIGHEST_AUTO_RATE, distance / updates)


def choose_save_steps(save_steps: int, *, updates: int) -> int:
    """Return the updates between two checkpoints: `save_steps`, or fewer in a run that would write too few checkpoints."""
    return min(save_steps, max(1, updates // LEAST_CHECKPOINTS))


def describe_small_margin(
    logs: Sequence[Mapping[str, Any]], *, start: float, learning_rate: float, updates: int
) -> str | None:
    """Return a warning when the margin of a training on pairs did not rise, else None.

    The margin is TRL's `rewards/margins`: beta times the change of the difference between the log-probabilities of the two
    passages. `start` is its value before the training. `logs` are the logged values of the training, in order.
    """
    margins = [float(row["rewards/margins"]) for row in logs if "rewards/margins" in row]
    if not margins or margins[-1] - start >= LEAST_MARGIN_RISE:
        return None
    return (
        f"the margin of chosen over rejected passages rose by only {margins[-1] - start:.3f} (below {LEAST_MARGIN_RISE:g}): "
        f"{updates} updates at rate {learning_rate:g} hardly moved the student; raise dpo.learning_rate or dpo.epochs"
    )
