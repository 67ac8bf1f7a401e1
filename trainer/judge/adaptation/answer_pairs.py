"""Pairs of answers for DPO: the best and the worst answer about one query and document, by their rewards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from querylift.plugin.files import open_for_replacement
from querylift.trainer.judge.adaptation.rewards import DIMENSIONS, ScoredAnswer


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Two answers to the prompt of one query and document: one to prefer and one to reject."""

    query_id: str
    doc_id: str
    chosen: ScoredAnswer
    rejected: ScoredAnswer


def choose_answers(
    sampled: Sequence[ScoredAnswer], annotated: ScoredAnswer | None, *, min_margin: float
) -> tuple[ScoredAnswer, ScoredAnswer] | None:
    """Return the best and the worst answer, or None when their rewards differ by less than `min_margin`.

    The best one may be `annotated`, the answer of the annotation, which also wins a tie. The worst one is a sample.
    """
    candidates = [*([annotated] if annotated else []), *sampled]
    best = max(candidates, key=lambda answer: answer.reward)  # the first of equal ones
    worst = min(sampled, key=lambda answer: answer.reward)
    return (best, worst) if best.reward - worst.reward >= min_margin else None


def compute_mean_scores(answers: Iterable[ScoredAnswer]) -> dict[str, float]:
    """Return the mean of each dimension and of the reward over the answers, of which there is at least one."""
    rows: list[Mapping[str, float]] = [{**answer.scores, "reward": answer.reward} for answer in answers]
    return {name: sum(row[name] for row in rows) / len(rows) for name in (*DIMENSIONS, "reward")}


def write_answer_pairs(pairs: Iterable[AnswerPair], path: Path) -> None:
    """Write one JSON object a line: the ids, and the text, reward and scores of both answers."""
    with open_for_replacement(path) as stream:
        for pair in pairs:
            stream.write(json.dumps(asdict(pair), ensure_ascii=False).encode() + b"\n")
