"""Experiments: systems measured against the search without expansion, on the judged queries of one corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.records import Qrels
from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.comparison import (
    MAX_LISTED_QUERIES,
    Comparison,
    compare_runs,
    correct_comparisons,
)
from querylift.index_tools.evaluation.conclusion import OutcomeCounts
from querylift.index_tools.evaluation.html_report import SHOWN_HITS, Hit, QueryDetail, Report, SystemRow
from querylift.index_tools.evaluation.measures import MAIN_MEASURE, Evaluation, evaluate_run
from querylift.index_tools.judging.grade_source import GradeSource
from querylift.index_tools.judging.judged_qrels import find_grade_source
from querylift.index_tools.searching import SearchedRun
from querylift.plugin.errors import SettingsError
from querylift.plugin.outcome import REASONS

_MAX_TITLE_CHARS = 120
_MODE_REMEDIES = {
    "same-hits": "leave aggs and collapse out of the body to measure widen",
    "required-words": "leave operator and minimum_should_match out of the body to measure widen",
}
"""For each reason for which `widen` becomes `boost`, what to do to measure `widen`."""


@dataclass(frozen=True, slots=True)
class Task:
    """The queries of one split with their judgments, and the index to search with them.

    `judged_by` is the model that made the judgments, and None when people made them. A task whose judgments a model makes
    after the searches has none before.
    """

    corpus: str
    split: str
    index: str
    queries: Mapping[str, str]
    qrels: Qrels
    relevant_from: int = 1
    judged_by: GradeSource | None = None


@dataclass(frozen=True, slots=True)
class System:
    """One way to search, and its run. `added_ms` is the time that it added to each query, if that was measured."""

    name: str
    searched: SearchedRun
    added_ms: Sequence[float] = ()


def create_task(corpus: Corpus, split: str | None, index: str) -> Task:
    """Return the task of a split. None stands for the only split. Raises SettingsError when there is no such split."""
    splits = list(corpus.split_names)
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        raise SettingsError(f"--split is {split!r}; {corpus.name} has: {', '.join(splits) or 'no judged split'}")
    qrels = corpus.read_qrels(split)
    queries = {query_id: text for query_id, text in corpus.read_queries(split).items() if query_id in qrels}
    return Task(corpus.name, split, index, queries, qrels, corpus.relevant_from, find_judging_model(corpus, split))


def find_judging_model(corpus: Corpus, split: str) -> GradeSource | None:
    """Return the model that judged a split's queries, or None when people did."""
    path = corpus.qrels_paths.get(split)
    return find_grade_source(path) if path else None


def check_baseline_hits(task: Task, baseline: System) -> None:
    """Raise SettingsError when no search has a hit, or no hit is judged: the field or the index is a wrong one.

    Of a task without judgments, only the hits are checked.
    """
    run, refusals = baseline.searched.run, baseline.searched.refusals
    if refusals and len(refusals) == len(run):
        reason = next(iter(refusals.values()))
        raise SettingsError(f"{task.index} refuses every search: {reason}; name what to search with --field or --body")
    if not any(run.values()):
        raise SettingsError(f"no query finds anything on {task.index}; name what to search with --field or --body")
    if task.qrels and not any(
        doc_id in task.qrels[query_id] for query_id, doc_ids in run.items() for doc_id in doc_ids
    ):
        raise SettingsError(
            f"{task.index} holds no judged document of {task.corpus}; index that corpus, or name another"
        )


def create_report(
    task: Task,
    baseline: System,
    systems: Iterable[System],
    *,
    engine: Engine,
    mode: str = "",
    weight: float | None = None,
) -> Report:
    """Return the measures of each system, and its paired comparison with `baseline`.

    The p-values of several systems are corrected for their number.

    Raises ValueError when no query has a relevant document, or when a grade is too large.
    """
    systems = list(systems)
    baseline_evaluation = evaluate_run(baseline.searched.run, task.qrels, relevant_from=task.relevant_from)
    rows = [SystemRow(baseline.name, baseline_evaluation, refused_count=len(baseline.searched.refusals))]
    rows += _create_rows(task, baseline, systems, baseline_evaluation, engine)
    judged_ids = {doc_id for grades in task.qrels.values() for doc_id in grades}
    return Report(
        tuple(rows),
        corpus=task.corpus,
        split=task.split,
        index=task.index,
        engine=str(engine.read_info()),
        date=date.today().isoformat(),
        generator=", ".join(row.name for row in rows[1:]),
        mode=mode,
        weight=weight,
        measure=MAIN_MEASURE,
        relevant_from=task.relevant_from,
        judged_document_count=len(judged_ids),
        missing_document_count=_count_missing_documents(task, judged_ids, (baseline, *systems), engine),
        judged_by=task.judged_by,
    )


def find_mode_warnings(searched: SearchedRun) -> list[str]:
    """Return a sentence for each reason for which searches under mode `widen` were served as `boost`."""
    counts = Counter(outcome.partition(";")[2] for outcome in searched.outcomes.values())
    return [
        f"{counts[reason]} of {len(searched.outcomes)} searches measure boost: {REASONS[reason]}; {remedy}"
        for reason, remedy in _MODE_REMEDIES.items()
        if counts[reason]
    ]


def report_to_json(report: Report, systems: Mapping[str, System]) -> dict[str, Any]:
    """Return the numbers of the report for a program. `systems` are the measured systems by name."""
    return {
        "corpus": report.corpus,
        "split": report.split,
        "index": report.index,
        "engine": report.engine,
        "mode": report.mode,
        "weight": report.weight,
        "judged_by": report.judged_by.to_json() if report.judged_by else None,
        "relevant_from": report.relevant_from,
        "judged_documents": {"count": report.judged_document_count, "not_in_index": report.missing_document_count},
        "systems": [_row_to_json(row, systems.get(row.name)) for row in report.systems],
    }


def calculate_percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which `share` of `values` lie (nearest rank), and None when there are no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def _create_rows(
    task: Task, baseline: System, systems: Sequence[System], baseline_evaluation: Evaluation, engine: Engine
) -> list[SystemRow]:
    evaluations = [
        evaluate_run(system.searched.run, task.qrels, relevant_from=task.relevant_from) for system in systems
    ]
    before = baseline_evaluation.per_query[MAIN_MEASURE]
    comparisons = correct_comparisons(
        {
            system.name: compare_runs(before, evaluation.per_query[MAIN_MEASURE])
            for system, evaluation in zip(systems, evaluations, strict=True)
        }
    )
    return [
        _create_row(task, baseline, system, evaluation, comparisons[system.name], engine)
        for system, evaluation in zip(systems, evaluations, strict=True)
    ]


def _create_row(
    task: Task, baseline: System, system: System, evaluation: Evaluation, comparison: Comparison, engine: Engine
) -> SystemRow:
    return SystemRow(
        system.name,
        evaluation,
        comparison,
        added_ms_p50=calculate_percentile(system.added_ms, 0.5),
        added_ms_p95=calculate_percentile(system.added_ms, 0.95),
        details=_create_query_details(task, baseline.searched, system.searched, comparison, engine),
        expanded_count=OutcomeCounts.of_run(system.searched).expanded,
        refused_count=len(system.searched.refusals),
    )


def _count_missing_documents(task: Task, judged_ids: Collection[str], systems: Iterable[System], engine: Engine) -> int:
    """Return how many judged documents the index lacks. A document that a search returned is there, whatever its id."""
    hit_ids = {doc_id for system in systems for doc_ids in system.searched.run.values() for doc_id in doc_ids}
    unseen_ids = set(judged_ids) - hit_ids
    return len(unseen_ids) - len(engine.find_documents(task.index, unseen_ids))


def _create_query_details(
    task: Task, before: SearchedRun, after: SearchedRun, comparison: Comparison, engine: Engine
) -> dict[str, QueryDetail]:
    """Return the worst and the best queries with their first hits, by query id."""
    ordered = list(comparison.differences)
    query_ids = dict.fromkeys(ordered[:MAX_LISTED_QUERIES] + ordered[-MAX_LISTED_QUERIES:])
    hits_before = {query_id: before.run.get(query_id, [])[:SHOWN_HITS] for query_id in query_ids}
    hits_after = {query_id: after.run.get(query_id, [])[:SHOWN_HITS] for query_id in query_ids}
    doc_ids = {doc_id for hits in (*hits_before.values(), *hits_after.values()) for doc_id in hits}
    titles = _fetch_titles(engine, task.index, doc_ids)
    return {
        query_id: QueryDetail(
            task.queries[query_id],
            after.expansions.get(query_id, ""),
            _create_hits(hits_before[query_id], task.qrels[query_id], titles),
            _create_hits(hits_after[query_id], task.qrels[query_id], titles),
        )
        for query_id in query_ids
    }


def _create_hits(doc_ids: Iterable[str], grades: Mapping[str, int], titles: Mapping[str, str]) -> tuple[Hit, ...]:
    return tuple(Hit(doc_id, titles.get(doc_id, ""), grades.get(doc_id)) for doc_id in doc_ids)


def _fetch_titles(engine: Engine, index: str, doc_ids: set[str]) -> dict[str, str]:
    """Return the title of each document, or the start of its text when it has no title."""
    sources = engine.find_documents(index, doc_ids, fields=("title", "text"))
    return {
        doc_id: str(source.get("title") or source.get("text") or "")[:_MAX_TITLE_CHARS]
        for doc_id, source in sources.items()
    }


def _row_to_json(row: SystemRow, system: System | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": row.name,
        "queries": row.evaluation.query_count,
        "means": dict(row.evaluation.means),
        "unjudged_share_of_first_ten": row.evaluation.unjudged_share,
    }
    if row.comparison is not None:
        values["comparison"] = {
            "measure": MAIN_MEASURE,
            "verdict": row.comparison.verdict if row.was_tried else None,
            "difference": row.comparison.difference,
            "p_value": row.comparison.p_value,
            "corrected_p_value": row.comparison.deciding_p_value,
            "interval": list(row.comparison.interval),
            "wins": row.comparison.wins,
            "ties": row.comparison.ties,
            "losses": row.comparison.losses,
        }
    if system is not None:
        values["refused_by_engine"] = dict(system.searched.refusals)
    if system is not None and row.comparison is not None:
        counts = OutcomeCounts.of_run(system.searched)
        values |= {"expanded": counts.expanded, "skipped": counts.skipped, "failed": counts.failed}
        values["outcomes"] = dict(counts.by_outcome)
    if row.added_ms_p50 is not None:
        values |= {"added_ms_p50": row.added_ms_p50, "added_ms_p95": row.added_ms_p95}
    return values
