"""What `querylift train score` says about a scoring: its results as JSON, and as lines for the user."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from querylift.trainer.rewards.scoring import ScoringResult


def summarise_scoring(scoring: ScoringResult, candidate_count: int, *, took_s: float) -> dict[str, Any]:
    """Return the counts, the mean reward of every method, and the number of queries whose candidates differ, as JSON."""
    from querylift.index_tools.evaluation.measures import calculate_mean

    rewards_by_method, rewards_by_query = defaultdict(list), defaultdict(set)
    for scored in scoring.scored:
        rewards_by_method[scored.candidate.method].append(scored.reward.value)
        rewards_by_query[scored.candidate.query_id].add(round(scored.reward.value, 9))
    return {
        "candidates": candidate_count,
        "scored": len(scoring.scored),
        "cut": scoring.cut_count,
        "without_end": sum(not scored.ended for scored in scoring.scored),
        "without_labels": scoring.unlabelled,
        "refused": len(scoring.rejections),
        "refusals": sorted(set(scoring.rejections.values()))[:5],
        "not_expanded": dict(scoring.not_expanded),
        "searches": scoring.search_count,
        "from_cache": scoring.cache_hits,
        "candidates_per_s": round(candidate_count / max(took_s, 1e-9), 1),
        "mean_reward": {method: calculate_mean(rewards) for method, rewards in sorted(rewards_by_method.items())},
        "queries": len(rewards_by_query),
        "queries_with_spread": sum(len(rewards) > 1 for rewards in rewards_by_query.values()),
        "index_fingerprint": scoring.fingerprint,
        "index_changed": scoring.index_changed,
    }


def format_summary(results: Mapping[str, Any]) -> str:
    """Return the counts and the mean rewards of a scoring, in lines for the user."""
    from querylift.index_tools.judging.grade_source import GradeSource

    lines = [
        f"candidates   {results['candidates']}: {results['scored']} scored, "
        f"{results['without_labels']} of queries without a relevant document, {results['refused']} refused",
        f"texts        {results['cut']} cut to what the student may write, {results['without_end']} did not end",
        f"searches     {results['searches']} made, {results['from_cache']} from the cache",
        f"speed        {results['candidates_per_s']:g} candidates/s",
        f"spread       {results['queries_with_spread']} of {results['queries']} queries have candidates that differ",
    ]
    if results.get("judged_by"):
        judge = results["judged_by"]
        label = GradeSource(judge["judge"], judge["teacher"], "").label
        pairs = f", {results['graded_pairs']} pairs" if "graded_pairs" in results else ""
        lines.append(f"judged by    {label}{pairs}")
    lines += [f"refused      {reason}" for reason in results["refusals"]]
    lines += [f"not expanded {count} ({reason})" for reason, count in results["not_expanded"].items()]
    lines += [f"mean reward  {mean:+.4f} {method}" for method, mean in results["mean_reward"].items()]
    return "\n".join(lines)
