"""The result of training a language model, as its manifest keeps it and as the user reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a stage. `examples` counts training examples, `left_out` the rows that gave none.

    `resumed_at` is the step of the checkpoint that the run continued from, 0 for a fresh run. `loss` is the mean over all
    steps, also those before the checkpoint. Losses are means over completion tokens (SFT) or pairs (DPO). `validation` is
    empty when no query was held out. `texts` counts texts of passages by the names in `training_texts`. `evaluation` says
    which step's weights are the result, and what was measured there. It is empty when nothing was evaluated. `origin` says
    where the data came from, for the card. `rewarding` is what GRPO asked of the engine.
    """

    folder: str
    examples: int
    left_out: int
    steps: int
    resumed_at: int
    loss: float
    validation: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, int] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    rewarding: Mapping[str, Any] = field(default_factory=dict)


def format_result(result: TrainingResult) -> str:
    """Return the lines for the user: steps, losses or what GRPO asked of the engine, the curves, and which step was chosen."""
    steps = f"{result.steps} steps" + (f", resumed at {result.resumed_at}" if result.resumed_at else "")
    if result.rewarding:
        lines = [f"{result.folder}: {steps}{_format_validation(result, 'reward', '+.4f')}", *_format_rewarding(result)]
    else:
        lines = [f"{result.folder}: {steps}, loss {result.loss:.3f}{_format_validation(result, 'loss', '.3f')}"]
    curves = f"curves: {result.folder}/curves.png"
    return "\n".join([*lines, curves, *_format_evaluation(result.evaluation)])


def _format_validation(result: TrainingResult, name: str, number_format: str) -> str:
    return f", validation {name} {result.validation[name]:{number_format}}" if name in result.validation else ""


def _format_rewarding(result: TrainingResult) -> list[str]:
    counts = result.rewarding
    return [
        f"{counts['samples']:,} samples: {counts['without_words']:,} without words, {counts['without_end']:,} without end, "
        f"{counts['rejected']:,} rejected by the engine",
        f"{counts['searches']:,} searches made, {counts['cached_searches']:,} from the cache",
    ]


def _format_evaluation(evaluation: Mapping[str, float]) -> list[str]:
    """Return a line about the step whose weights are the result. [] when nothing was evaluated."""
    if not evaluation:
        return []
    scores = ""
    if "ndcg_at_10" in evaluation:
        plain = evaluation["plain_ndcg_at_10"]
        scores = f", nDCG@10 {evaluation['ndcg_at_10']:.3f}, without expansion {plain:.3f}"
    skipped = f"; the engine did not answer {evaluation['skipped']:g} evaluations" if evaluation["skipped"] else ""
    best = f" (the best is {evaluation['best_step']:g})" if evaluation["best_step"] != evaluation["step"] else ""
    return [f"weights of step {evaluation['step']:g}{best}{scores}{skipped}"]
