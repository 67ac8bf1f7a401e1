"""Measures of many rankings by trec_eval, and the mix of them that is a reward."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from querylift.index_tools.evaluation.measures import falling_scores, import_pytrec_eval, mean

_CUTS = (5, 10, 15, 20, 30, 100)
MEASURES: Mapping[str, str] = {
    **{f"ndcg_at_{cut}": f"ndcg_cut_{cut}" for cut in _CUTS},
    **{f"recall_at_{cut}": f"recall_{cut}" for cut in _CUTS},
}
"""What a mix may be made of, and trec_eval's name for it."""


def mixed(base: Mapping[str, float], values: Sequence[Mapping[str, float]], mix: Mapping[str, float]) -> float:
    """The mean over `values` of the sum of share * (measure - base); no change at all is exactly 0."""
    gains = [math.fsum(share * (of[name] - base[name]) for name, share in mix.items()) for of in values]
    return mean(gains)


class Measurer:
    """Takes measures of rankings by trec_eval, many of one query at a time, by the rules of `querylift.index_tools.evaluation.measures`.

    `qrels` holds queries with a relevant document only. A ranking without documents counts 0.
    """

    def __init__(
        self, qrels: Mapping[str, Mapping[str, int]], measures: Sequence[str], *, relevant_from: int = 1
    ) -> None:
        self._names = {measure: MEASURES[measure] for measure in measures}
        judged = {query_id: dict(grades) for query_id, grades in qrels.items()}
        self._trec_eval = import_pytrec_eval().RelevanceEvaluator(
            judged, set(self._names.values()), relevance_level=relevant_from
        )

    def __call__(self, rankings: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, float]]:
        """The measures of each (query id, document ids), in order."""
        measured: list[dict[str, float]] = [dict.fromkeys(self._names, 0.0) for _ in rankings]
        for places in _rounds(rankings):
            run = {query_id: falling_scores(rankings[place][1]) for query_id, place in places.items()}
            for query_id, values in self._trec_eval.evaluate(run).items():
                measured[places[query_id]] = {measure: values[name] for measure, name in self._names.items()}
        return measured


def _rounds(rankings: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, int]]:
    """The places of `rankings` as runs: each query at most once in one, rankings without documents in none."""
    rounds: list[dict[str, int]] = []
    seen: defaultdict[str, int] = defaultdict(int)
    for place, (query_id, doc_ids) in enumerate(rankings):
        if doc_ids:
            if seen[query_id] == len(rounds):
                rounds.append({})
            rounds[seen[query_id]][query_id] = place
            seen[query_id] += 1
    return rounds
