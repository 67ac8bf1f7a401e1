"""Rewards while a student trains: `score_candidates` on each batch of its texts, and what all batches asked of the engine.

Every text gets a reward, because a trainer needs one. A text without words, or whose search the engine rejects, is worth what
the query alone is worth: 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.settings import Settings
from querylift.trainer.candidates import Candidate
from querylift.trainer.rewards.engine_retry import EngineRetry, classify_engine_errors
from querylift.trainer.rewards.labels import Labels
from querylift.trainer.rewards.ranking_cache import RankingCache, take_snapshot
from querylift.trainer.rewards.scoring import RewardOptions, ScoringResult, score_candidates

COUNTED = ("samples", "without_words", "without_end", "rejected", "searches", "cached_searches")
"""What is counted: texts, three kinds of them, searches that were made, and searches whose ranking was in the cache."""


@dataclass(slots=True, kw_only=True)
class EngineReward:
    """Gives the texts of a student their rewards. `counts` has the names in `COUNTED`.

    `fingerprint` is that of the index, "" before `check_index`.
    """

    engine: Engine
    settings: Settings
    labels: Labels
    options: RewardOptions
    cache: RankingCache
    retry: EngineRetry
    counts: Counter[str] = field(default_factory=Counter)
    fingerprint: str = ""

    def check_index(self) -> None:
        """Set `fingerprint`. Raise SettingsError when the engine has no such index, or when nothing answers at its URL."""
        if not self.retry.call_until_answered(self._has_index):
            raise SettingsError(
                f"{self.settings.engine_text} has no index {self.options.index!r}; build it with `querylift index`, or name "
                "another with --index"
            )
        self.fingerprint = self.retry.call_until_answered(self._read_fingerprint)

    def compute_rewards(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the reward of each candidate.

        Each needs a sample number of its own. Two texts of a query with one number would share a reward.

        Raises EngineError when the engine stays away longer than `retry` allows, or when the index changed.
        """
        scoring = score_candidates(
            candidates,
            engine=self.engine,
            settings=self.settings,
            labels=self.labels,
            options=self.options,
            cache=self.cache,
            retry=self.retry,
        )
        self._check_state(scoring)
        self._count_batch(candidates, scoring)
        rewards = {scored.candidate.request_key: scored.reward.value for scored in scoring.scored}
        return [rewards.get(candidate.request_key, 0.0) for candidate in candidates]

    def _has_index(self) -> bool:
        with classify_engine_errors():
            return self.engine.has_index(self.options.index)

    def _read_fingerprint(self) -> str:
        return take_snapshot(self.engine, self.options.index).fingerprint

    def _check_state(self, scoring: ScoringResult) -> None:
        """Raise EngineError when the index is not as it was at the start."""
        self.fingerprint = self.fingerprint or scoring.fingerprint
        if scoring.index_changed or scoring.fingerprint != self.fingerprint:
            raise EngineError(
                f"the index {self.options.index!r} changed while it was searched for rewards; "
                "run the same command again once nothing writes to it"
            )

    def _count_batch(self, candidates: Sequence[Candidate], scoring: ScoringResult) -> None:
        self.counts.update(
            {
                "samples": len(candidates),
                "without_words": sum(not scored.words for scored in scoring.scored),
                "without_end": sum(not candidate.ended for candidate in candidates),
                "rejected": len(scoring.rejections),
                "searches": scoring.search_count,
                "cached_searches": scoring.cache_hits,
            }
        )
