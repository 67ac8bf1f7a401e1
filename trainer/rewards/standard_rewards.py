"""Rewards of several indices on one scale.

One index moves its measure by .3 with a good passage, another by .03. Differences of rewards would then come from the first index
alone. Each reward is divided by the standard deviation of the rewards within the queries of its index.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from querylift.plugin.errors import SettingsError
from querylift.trainer.rewards.scored_candidates import ScoredCandidate


def standardize_rewards(scored_candidates: Iterable[ScoredCandidate]) -> list[ScoredCandidate]:
    """Return the candidates in order, with rewards in standard deviations. A reward of 0 stays 0.

    Rewards of an index are left as they are when all candidates of each query score alike. Raises SettingsError when a line does
    not say which index it was scored on.
    """
    candidates = list(scored_candidates)
    deviations = compute_deviations(candidates)
    return [
        replace(
            scored, reward=replace(scored.reward, value=scored.reward.value / (deviations[_name_index(scored)] or 1.0))
        )
        for scored in candidates
    ]


def compute_deviations(scored_candidates: Iterable[ScoredCandidate]) -> Mapping[str, float]:
    """Return, by index, the square root of the mean variance of the rewards within a query."""
    rewards: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for scored in scored_candidates:
        candidate = scored.candidate
        rewards[_name_index(scored)][candidate.query_id, candidate.query].append(scored.reward.value)
    return {index: math.sqrt(fmean(map(_compute_variance, queries.values()))) for index, queries in rewards.items()}


def _compute_variance(values: Sequence[float]) -> float:
    mean = fmean(values)
    return fmean((value - mean) ** 2 for value in values)


def _name_index(scored: ScoredCandidate) -> str:
    if scored.basis is None:
        raise SettingsError(
            f"the candidate of query {scored.candidate.query_id!r} does not say which index it was scored on; "
            "score the candidates again with `querylift train score`, or leave out --standardize"
        )
    return scored.basis.index
