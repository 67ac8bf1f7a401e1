"""Measures of a run: how good it is, by trec_eval, with one rule for the queries that trec_eval would silently drop.

Each mean is over the queries that have at least one document graded `relevant_from` or above:

* Such a query counts 0 where the run has no document for it. trec_eval leaves it out, which flatters the run.
* A judged query without such a document is left out of every measure and is counted.
* A query of the run that nobody judged is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from querylift.index_tools.corpora.records import MAX_GRADE, Qrels, Run
from querylift.plugin.errors import MissingExtra

MAIN_MEASURE = "ndcg_at_10"
"""The measure that systems are compared by."""
SUMMARY_MEASURES: tuple[str, ...] = (MAIN_MEASURE, "recall_at_100")
"""The measures that tables show."""
MEASURES: tuple[str, ...] = (MAIN_MEASURE, "map", "mrr_at_10", "recall_at_100", "recall_at_1000")
"""The measures of every evaluation."""
LABELS: Mapping[str, str] = {
    "ndcg_at_10": "nDCG@10",
    "map": "MAP",
    "mrr_at_10": "MRR@10",
    "recall_at_100": "recall@100",
    "recall_at_1000": "recall@1000",
}
"""How people write each measure."""

_CUT_OFFS = (5, 10, 15, 20, 30, 100)
REWARD_MEASURES: Mapping[str, str] = {
    **{f"ndcg_at_{cut_off}": f"ndcg_cut_{cut_off}" for cut_off in _CUT_OFFS},
    **{f"recall_at_{cut_off}": f"recall_{cut_off}" for cut_off in _CUT_OFFS},
}
"""The measures that a reward may mix, each with trec_eval's name for it. They look at 100 hits or fewer."""
CONDENSED_MEASURES: Mapping[str, str] = {f"condensed_ndcg_at_{cut_off}": f"ndcg_cut_{cut_off}" for cut_off in _CUT_OFFS}
"""More measures of rewards: nDCG of the list without the documents that nobody judged (Sakai, SIGIR 2007)."""

_FIRST_HITS = 10
"""The hits that nDCG@10 and MRR@10 look at."""
_TREC_EVAL_NAMES = {"map": "map", "recall_at_1000": "recall_1000", **REWARD_MEASURES}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measures of one run. `per_query[measure][query_id]` and `means[measure]` lie between 0 and 1."""

    per_query: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]
    missing: tuple[str, ...]
    """Ids of the queries that count 0 because the run has no document for them."""
    without_relevant: tuple[str, ...]
    """Ids of the judged queries that every measure leaves out, because no document of theirs is relevant."""
    first_hit_count: int = 0
    """The number of hits among the first ten of all measured queries."""
    unjudged_hit_count: int = 0
    """How many of these nobody judged. They count as not relevant, which harms a system that finds new documents."""

    @property
    def unjudged_share(self) -> float | None:
        """The share of the first ten hits that nobody judged, from 0 to 1. None when there are no hits."""
        return self.unjudged_hit_count / self.first_hit_count if self.first_hit_count else None

    @property
    def query_count(self) -> int:
        """The number of queries that every mean is over."""
        return len(self.per_query[MAIN_MEASURE])


def evaluate_run(run: Run, qrels: Qrels, *, relevant_from: int = 1) -> Evaluation:
    """Measure `run` against `qrels`.

    nDCG@10 takes the grade itself as gain. It is the sum of grade / log2(rank + 1), over the same sum of the best order:
    the LINEAR gain of trec_eval, not 2**grade - 1. A grade below 0 gains 0, and so does a document without a grade.

    MAP, MRR@10 and recall count a document as relevant from grade `relevant_from` (TREC Deep Learning: 2). Average
    precision is the sum of the precision at each relevant document, over the number of relevant documents. MRR@10 is
    1 / rank of the first relevant document, and 0 past rank 10. recall@k is the share of relevant documents within k.

    Raises ValueError when `relevant_from` is below 1, when a grade is beyond `MAX_GRADE`, and when no query has a relevant
    document.
    """
    if relevant_from < 1:
        raise ValueError(f"relevant_from is {relevant_from}; give the lowest grade that counts as relevant, 1 or more")
    for query_id, grades in qrels.items():
        if max(map(abs, grades.values()), default=0) > MAX_GRADE:
            raise ValueError(f"a grade of query {query_id!r} is beyond {MAX_GRADE}; use smaller grades")
    usable = {
        query_id: grades
        for query_id, grades in qrels.items()
        if any(grade >= relevant_from for grade in grades.values())
    }
    if not usable:
        raise ValueError(f"no query of the qrels has a document graded {relevant_from} or above")
    per_query = _measure_queries(run, usable, relevant_from)
    first_hits = [(query_id, doc_id) for query_id in usable for doc_id in run.get(query_id, [])[:_FIRST_HITS]]
    return Evaluation(
        per_query=per_query,
        means={measure: calculate_mean(values.values()) for measure, values in per_query.items()},
        missing=tuple(query_id for query_id in usable if not run.get(query_id)),
        without_relevant=tuple(query_id for query_id in qrels if query_id not in usable),
        first_hit_count=len(first_hits),
        unjudged_hit_count=sum(doc_id not in usable[query_id] for query_id, doc_id in first_hits),
    )


def calculate_mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean. Raises ValueError when there are no values."""
    numbers = list(values)
    if not numbers:
        raise ValueError("there are no values to take the mean of")
    return math.fsum(numbers) / len(numbers)


def _measure_queries(run: Run, qrels: Qrels, relevant_from: int) -> dict[str, dict[str, float]]:
    """Return each of `MEASURES` for each query of `qrels`: measure to query id to value."""
    names = {measure: _TREC_EVAL_NAMES[measure] for measure in MEASURES if measure in _TREC_EVAL_NAMES}
    scores = _run_trec_eval(run, qrels, relevant_from, tuple(names.values()))
    # trec_eval's reciprocal rank has no cut-off, so the run is cut off instead.
    first_hits = {query_id: doc_ids[:_FIRST_HITS] for query_id, doc_ids in run.items()}
    reciprocal_ranks = _run_trec_eval(first_hits, qrels, relevant_from, ("recip_rank",))
    values = {
        measure: {query_id: scores.get(query_id, {}).get(name, 0.0) for query_id in qrels}
        for measure, name in names.items()
    }
    values["mrr_at_10"] = {query_id: reciprocal_ranks.get(query_id, {}).get("recip_rank", 0.0) for query_id in qrels}
    return {measure: values[measure] for measure in MEASURES}


def _run_trec_eval(run: Run, qrels: Qrels, relevant_from: int, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return what trec_eval measures, under its own names. Queries without a document in `run` are left out."""
    evaluator = import_pytrec_eval().RelevanceEvaluator(qrels, names, relevance_level=relevant_from)
    results: dict[str, dict[str, float]] = evaluator.evaluate(
        {query_id: assign_falling_scores(run[query_id]) for query_id in qrels if run.get(query_id)}
    )
    return results


def assign_falling_scores(doc_ids: Sequence[str]) -> dict[str, float]:
    """Give each document a score below that of the document before it.

    trec_eval sorts by score, and sorts documents of equal score by their ids. A document that is listed twice keeps its
    first place, and the next document moves up.
    """
    distinct = list(dict.fromkeys(doc_ids))
    return {doc_id: float(len(distinct) - place) for place, doc_id in enumerate(distinct)}


def import_pytrec_eval() -> Any:
    """Return the module pytrec_eval. Raises MissingExtra when it is not installed."""
    try:
        import pytrec_eval
    except ImportError as error:
        raise MissingExtra("pytrec-eval-terrier", "index") from error
    return pytrec_eval
