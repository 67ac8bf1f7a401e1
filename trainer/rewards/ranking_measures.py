"""Measures of many rankings by trec_eval, and the reward that mixes them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from querylift.index_tools.evaluation.measures import (
    CONDENSED_MEASURES,
    REWARD_MEASURES,
    assign_falling_scores,
    calculate_mean,
    import_pytrec_eval,
)


def compute_reward(base: Mapping[str, float], values: Sequence[Mapping[str, float]], mix: Mapping[str, float]) -> float:
    """Return the mean over `values` of the sum of share * (measure - base), with the shares of `mix`.

    It is exactly 0 when no measure changes.
    """
    gains = [math.fsum(share * (measured[name] - base[name]) for name, share in mix.items()) for measured in values]
    return calculate_mean(gains)


class Measurer:
    """Measures rankings with trec_eval, several of one query in one call.

    It follows the rules of `querylift.index_tools.evaluation.measures`. `qrels` must hold only queries with a relevant
    document. A ranking without documents measures 0.
    """

    def __init__(
        self, qrels: Mapping[str, Mapping[str, int]], measures: Sequence[str], *, relevant_from: int = 1
    ) -> None:
        self._measures = tuple(measures)
        judgments = {query_id: dict(grades) for query_id, grades in qrels.items()}
        self._evaluators = []
        for table, is_condensed in ((REWARD_MEASURES, False), (CONDENSED_MEASURES, True)):
            names = {measure: table[measure] for measure in measures if measure in table}
            if names:
                evaluator = import_pytrec_eval().RelevanceEvaluator(
                    judgments,
                    set(names.values()),
                    relevance_level=relevant_from,
                    judged_docs_only_flag=is_condensed,
                )
                self._evaluators.append((evaluator, names))

    def __call__(self, rankings: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, float]]:
        """Return the measures of each (query_id, doc_ids), in the same order."""
        measured: list[dict[str, float]] = [dict.fromkeys(self._measures, 0.0) for _ in rankings]
        for positions in _arrange_into_runs(rankings):
            run = {query_id: assign_falling_scores(rankings[position][1]) for query_id, position in positions.items()}
            for evaluator, names in self._evaluators:
                for query_id, values in evaluator.evaluate(run).items():
                    measured[positions[query_id]] |= {measure: values[name] for measure, name in names.items()}
        return measured


def _arrange_into_runs(rankings: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, int]]:
    """Arrange the positions of `rankings` into runs that hold each query at most once. Empty rankings are left out."""
    runs: list[dict[str, int]] = []
    counts: defaultdict[str, int] = defaultdict(int)
    for position, (query_id, doc_ids) in enumerate(rankings):
        if doc_ids:
            if counts[query_id] == len(runs):
                runs.append({})
            runs[counts[query_id]][query_id] = position
            counts[query_id] += 1
    return runs
