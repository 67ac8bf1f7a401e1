"""TRL's GRPO trainer, with what its rewards asked of the engine in every line of the log.

The log is part of a checkpoint. So the counts go on where they were when a run continues from one. So does the order of the
queries: it depends on the seed and the number of the epoch, and not on how often the run was started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

_PREFIX = "total/"


class GroupTrainer(GRPOTrainer):  # type: ignore[misc]
    """Logs the sum of `counts` over all processes. The reward changes `counts` while the trainer runs."""

    def __init__(self, *args: Any, counts: Counter[str], names: Sequence[str], **kwargs: Any) -> None:
        """`names` are those of the counts, also of the counts that are 0."""
        super().__init__(*args, **kwargs)
        self._counts, self._names = counts, tuple(names)
        self.add_callback(_CountRestorer(counts))

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        """Return TRL's sampler, which repeats each query for its samples, in our order of the queries."""
        sampler = super()._get_train_sampler(dataset)
        return _EpochSampler(
            sampler.data_source,
            mini_repeat_count=sampler.mini_repeat_count,
            batch_size=sampler.batch_size,
            repeat_count=sampler.repeat_count,
            seed=sampler.seed,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the counts, and log as usual. Every process must call this at the same step."""
        counts = torch.tensor([float(self._counts[name]) for name in self._names], device=self.accelerator.device)
        totals = self.accelerator.reduce(counts, reduction="sum").tolist()
        logs.update({_PREFIX + name: total for name, total in zip(self._names, totals, strict=True)})
        super().log(logs, start_time)


class _EpochSampler(RepeatSampler):  # type: ignore[misc]
    """Shuffles by seed and epoch. TRL's sampler begins with the order of the first epoch whenever a run is started."""

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self.generator.manual_seed(self.seed + epoch)


class _CountRestorer(TrainerCallback):  # type: ignore[misc]
    """Gives the first process the counts of a checkpoint. The other processes begin at 0."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._counts.update(read_total_counts(state.log_history))


def read_total_counts(history: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the counts that were logged last, {} when none were."""
    for row in reversed(history):
        totals = {name.removeprefix(_PREFIX): round(value) for name, value in row.items() if name.startswith(_PREFIX)}
        if totals:
            return totals
    return {}
