"""Evaluation of a student on an engine: its greedy passages are searched with, as they would be served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.measures import MAIN_MEASURE
from querylift.plugin.settings import Settings
from querylift.trainer.candidates import Candidate
from querylift.trainer.rewards.engine_retry import EngineRetry
from querylift.trainer.rewards.labels import Labels
from querylift.trainer.rewards.scoring import RewardOptions, score_candidates
from querylift.trainer.student.sampling import STUDENT_METHOD, sample_passages
from querylift.trainer.training_config import SamplingOptions


class SearchScores(NamedTuple):
    """Mean nDCG@10 over the queries, with the student's expansions and without any."""

    ndcg_at_10: float
    plain_ndcg_at_10: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEvaluator:
    """Measures a student on the judged queries of one split. `name` is CORPUS:SPLIT.

    `weight` is that of the expansion. `batch_size` is the number of passages that the student writes at once. An engine
    that stops answering is waited for up to `patience_s`.
    """

    name: str
    queries: Mapping[str, str] = field(repr=False)
    labels: Labels
    settings: Settings = field(repr=False)
    index: str
    weight: float
    batch_size: int
    patience_s: float = 30.0

    def evaluate(self, model: Any, tokenizer: Any) -> SearchScores:
        """Return the scores of `model`. A query whose search the engine refuses counts 0.

        Raises EngineError and SettingsError when the engine does not answer.
        """
        options = SamplingOptions(temperature=0, batch_size=self.batch_size)
        samples = sample_passages(model, tokenizer, self.queries, options, seed=0)
        candidates = [
            Candidate(sample.query_id, self.queries[sample.query_id], STUDENT_METHOD, "student", sample.text)
            for sample in samples
        ]
        with Engine(self.settings) as engine:
            scored = score_candidates(
                candidates,
                engine=engine,
                settings=self.settings,
                labels=self.labels,
                options=RewardOptions(index=self.index, weights=(self.weight,)),
                retry=EngineRetry(self.patience_s),
            ).scored
        rewards = [candidate.reward for candidate in scored]
        return SearchScores(
            sum(reward.by_weight[self.weight][MAIN_MEASURE] for reward in rewards) / len(self.queries),
            sum(reward.base[MAIN_MEASURE] for reward in rewards) / len(self.queries),
        )
