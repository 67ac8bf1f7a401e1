"""Which step of a training run was the best, read from the trainer's log.

The log is kept in every checkpoint. So a run that continues from a checkpoint knows its best step so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NDCG_KEY, PLAIN_NDCG_KEY = "eval_ndcg_at_10", "eval_plain_ndcg_at_10"
"""The logged nDCG@10 of the student, and that of the queries without expansion."""
LOSS_KEY = "eval_loss"
REWARD_KEY = "eval_reward"
"""The mean reward of the validation queries in GRPO. The loss says nothing there."""
SKIPPED_KEY = "eval_skipped"
"""What is logged for an evaluation that the engine did not answer."""


class BestStep(NamedTuple):
    """The best step so far and its value. `later_evaluations` counts those that came after it."""

    step: int
    value: float
    later_evaluations: int


@dataclass(frozen=True, slots=True)
class Criterion:
    """The logged value that decides which step is the best."""

    key: str
    higher_is_better: bool

    def find_best(self, history: Sequence[Mapping[str, Any]]) -> BestStep | None:
        """Return the best step of the log, the first of equals. None when nothing was evaluated."""
        values = {int(row["step"]): float(row[self.key]) for row in history if self.key in row}
        if not values:
            return None
        step = (max if self.higher_is_better else min)(values, key=lambda step: values[step])
        return BestStep(step, values[step], sum(later > step for later in values))


BY_NDCG = Criterion(NDCG_KEY, higher_is_better=True)
BY_LOSS = Criterion(LOSS_KEY, higher_is_better=False)
BY_REWARD = Criterion(REWARD_KEY, higher_is_better=True)
