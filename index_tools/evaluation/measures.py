"""How good a run is: five measures of trec_eval, one rule for the queries that it would silently drop.

Means are taken over every query that has at least one document graded `relevant_from` or above:

* such a query for which the run has no document counts 0 (trec_eval leaves it out, which flatters the run);
* a judged query without such a document is left out of every measure, whatever the run says, and is counted;
* a query of the run that nobody judged is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from querylift.index_tools.corpora.trec_files import Qrels, Run
from querylift.plugin.errors import MissingExtra

MEASURES: tuple[str, ...] = ("ndcg_at_10", "map", "mrr_at_10", "recall_at_100", "recall_at_1000")
LABELS: Mapping[str, str] = {
    "ndcg_at_10": "nDCG@10",
    "map": "MAP",
    "mrr_at_10": "MRR@10",
    "recall_at_100": "recall@100",
    "recall_at_1000": "recall@1000",
}
"""How people write each measure."""

_TREC_EVAL = {
    "ndcg_at_10": "ndcg_cut_10",
    "map": "map",
    "recall_at_100": "recall_100",
    "recall_at_1000": "recall_1000",
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measures of one run. `per_query[measure][query_id]` and `means[measure]` lie between 0 and 1."""

    per_query: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]
    missing: tuple[str, ...]
    """Query ids that count 0 because the run has no document for them."""
    without_relevant: tuple[str, ...]
    """Judged query ids that no measure includes: none of their documents is graded `relevant_from` or above."""

    @property
    def queries(self) -> int:
        """How many queries every mean is taken over."""
        return len(self.per_query["ndcg_at_10"])


def evaluate(run: Run, qrels: Qrels, *, relevant_from: int = 1) -> Evaluation:
    """Measure `run` against `qrels`.

    nDCG@10 takes the grade itself as gain, the sum of grade / log2(rank + 1) over the same sum of the best order: the
    LINEAR gain of trec_eval, not 2**grade - 1. A grade below 0 and a document without one gain 0.

    MAP, MRR@10 and recall count a document as relevant from grade `relevant_from` (TREC Deep Learning: 2). Average
    precision is the sum of the precision at each relevant document found, over the number of relevant ones; MRR@10 is
    1 / rank of the first relevant document, 0 past rank 10; recall@k is the share of the relevant documents within k.

    Raises ValueError where `relevant_from` is below 1 or no query has a relevant document.
    """
    if relevant_from < 1:
        raise ValueError(f"relevant_from is the lowest grade that counts as relevant, 1 or more, not {relevant_from}")
    judged = {q: grades for q, grades in qrels.items() if any(g >= relevant_from for g in grades.values())}
    if not judged:
        raise ValueError(f"no query of the qrels has a document graded {relevant_from} or above")
    per_query = _per_query(run, judged, relevant_from)
    return Evaluation(
        per_query=per_query,
        means={measure: mean(values.values()) for measure, values in per_query.items()},
        missing=tuple(q for q in judged if not run.get(q)),
        without_relevant=tuple(q for q in qrels if q not in judged),
    )


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean. Raises ValueError where there are no values."""
    listed = list(values)
    if not listed:
        raise ValueError("no values to take the mean of")
    return math.fsum(listed) / len(listed)


def _per_query(run: Run, judged: Qrels, relevant_from: int) -> dict[str, dict[str, float]]:
    found = _trec_eval(run, judged, relevant_from, tuple(_TREC_EVAL.values()))
    # trec_eval's reciprocal rank has no cut-off: the run is cut instead.
    first = _trec_eval({q: docs[:10] for q, docs in run.items()}, judged, relevant_from, ("recip_rank",))
    values = {measure: {q: found.get(q, {}).get(name, 0.0) for q in judged} for measure, name in _TREC_EVAL.items()}
    values["mrr_at_10"] = {q: first.get(q, {}).get("recip_rank", 0.0) for q in judged}
    return {measure: values[measure] for measure in MEASURES}


def _trec_eval(run: Run, judged: Qrels, relevant_from: int, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    evaluator = import_pytrec_eval().RelevanceEvaluator(judged, names, relevance_level=relevant_from)
    results: dict[str, dict[str, float]] = evaluator.evaluate({q: falling_scores(run[q]) for q in judged if run.get(q)})
    return results


def falling_scores(doc_ids: Sequence[str]) -> dict[str, float]:
    """Strictly falling scores: trec_eval sorts by score, and puts equal scores in the order of the document ids.

    A document that is listed twice keeps its first place, and the next one moves up.
    """
    distinct = list(dict.fromkeys(doc_ids))
    return {doc_id: float(len(distinct) - place) for place, doc_id in enumerate(distinct)}


def import_pytrec_eval() -> Any:
    """The module. Raises MissingExtra where it is not installed."""
    try:
        import pytrec_eval
    except ImportError as error:
        raise MissingExtra("pytrec-eval-terrier", "index") from error
    return pytrec_eval
