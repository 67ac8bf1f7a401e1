"""Set systems against the unexpanded search on one corpus, and say whether expansion helps there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from querylift.index_tools.corpora.loading import Corpus
from querylift.index_tools.corpora.trec_files import Qrels
from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.comparison import Comparison, compare
from querylift.index_tools.evaluation.measures import Evaluation, evaluate
from querylift.index_tools.evaluation.report import Hit, QueryDetail, Report, SystemRow
from querylift.index_tools.searching import Searched
from querylift.plugin.errors import SettingsError

MEASURE = "ndcg_at_10"
_SHOWN_QUERIES = 10
_SHOWN_HITS = 5


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured: judged queries of a split, and where."""

    corpus: str
    split: str
    index: str
    queries: Mapping[str, str]
    qrels: Qrels
    relevant_from: int = 1


@dataclass(frozen=True, slots=True)
class System:
    """One way to search and what came of it. `added_ms` holds the time that it added to each query, where it was taken."""

    name: str
    searched: Searched
    added_ms: Sequence[float] = ()


def task_of(corpus: Corpus, split: str | None, index: str) -> Task:
    """The judged queries of a split, None being the only one. Raises SettingsError."""
    splits = list(corpus.splits())
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        raise SettingsError(f"--split is {split!r}; {corpus.name} has: {', '.join(splits) or 'no judged split'}")
    qrels = corpus.qrels(split)
    queries = {q: text for q, text in corpus.queries(split).items() if q in qrels}
    return Task(corpus.name, split, index, queries, qrels, corpus.relevant_from)


def check_found(task: Task, baseline: System) -> None:
    """Raise SettingsError where no search finds anything: that is a wrong field or a wrong index, and no result."""
    run = baseline.searched.run
    if not any(run.values()):
        raise SettingsError(f"not one query finds anything on {task.index}; name what to search with --field or --body")
    if not any(doc in task.qrels[q] for q, docs in run.items() for doc in docs):
        raise SettingsError(
            f"{task.index} holds no judged document of {task.corpus}; index that corpus, or name another"
        )


def report(
    task: Task,
    baseline: System,
    systems: Iterable[System],
    *,
    engine: Engine,
    mode: str = "",
    weight: float | None = None,
) -> Report:
    """Everything for a table and a page: each system's measures, and its paired comparison with `baseline`."""
    base = evaluate(baseline.searched.run, task.qrels, relevant_from=task.relevant_from)
    rows = [SystemRow(baseline.name, base)]
    rows += [_row(task, baseline, system, base, engine) for system in systems]
    return Report(
        tuple(rows),
        corpus=task.corpus,
        split=task.split,
        index=task.index,
        engine=str(engine.info()),
        date=date.today().isoformat(),
        generator=", ".join(row.name for row in rows[1:]),
        mode=mode,
        weight=weight,
        measure=MEASURE,
        relevant_from=task.relevant_from,
    )


def advice(task: Task, comparison: Comparison, how: str) -> str:
    """What to put into querylift.toml after this measurement; `how` is the settings that were measured, as TOML lines."""
    if comparison.verdict == "helps":
        switch = f'To switch it on:\n\n[index."{task.index}"]\n{how}' if how else "Keep the proxy's settings."
        return f"It helps here. {switch}"
    if comparison.verdict == "harms":
        return f"It harms here. Leave expansion off on {task.index}."
    seen = f"No difference beyond chance was seen with {len(comparison.differences)} queries."
    return f"{seen}\nLeave expansion off on {task.index}."


def outcomes(searched: Searched) -> str:
    """How many queries became what: "expanded 40, late;budget 3"."""
    return ", ".join(
        f"{name or 'sent as it was'} {count}" for name, count in Counter(searched.outcomes.values()).most_common()
    )


def as_json(made: Report, systems: Mapping[str, System]) -> dict[str, Any]:
    """The report's numbers for a program."""
    return {
        "corpus": made.corpus,
        "split": made.split,
        "index": made.index,
        "engine": made.engine,
        "mode": made.mode,
        "weight": made.weight,
        "systems": [_system_json(row, systems.get(row.name)) for row in made.systems],
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of `values` lie (nearest rank); None where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def _row(task: Task, baseline: System, system: System, base: Evaluation, engine: Engine) -> SystemRow:
    measured = evaluate(system.searched.run, task.qrels, relevant_from=task.relevant_from)
    comparison = compare(base.per_query[MEASURE], measured.per_query[MEASURE])
    return SystemRow(
        system.name,
        measured,
        comparison,
        added_ms_p50=percentile(system.added_ms, 0.5),
        added_ms_p95=percentile(system.added_ms, 0.95),
        details=_details(task, baseline.searched, system.searched, comparison, engine),
    )


def _details(
    task: Task, before: Searched, after: Searched, comparison: Comparison, engine: Engine
) -> dict[str, QueryDetail]:
    """The worst and the best queries with their first hits."""
    ordered = list(comparison.differences)
    shown = dict.fromkeys(ordered[:_SHOWN_QUERIES] + ordered[-_SHOWN_QUERIES:])
    first = {q: (before.run.get(q, [])[:_SHOWN_HITS], after.run.get(q, [])[:_SHOWN_HITS]) for q in shown}
    titles = _titles(engine, task.index, {doc for pair in first.values() for ids in pair for doc in ids})
    return {
        q: QueryDetail(
            task.queries[q],
            after.expansions.get(q, ""),
            _hits(first[q][0], task.qrels[q], titles),
            _hits(first[q][1], task.qrels[q], titles),
        )
        for q in shown
    }


def _hits(doc_ids: Iterable[str], grades: Mapping[str, int], titles: Mapping[str, str]) -> tuple[Hit, ...]:
    return tuple(Hit(doc, titles.get(doc, ""), grades.get(doc)) for doc in doc_ids)


def _titles(engine: Engine, index: str, doc_ids: set[str]) -> dict[str, str]:
    """What to show of each document: its title, or the start of its text."""
    if not doc_ids:
        return {}
    answer = engine.call("POST", f"/{index}/_mget", {"ids": sorted(doc_ids)}, params={"_source": "title,text"})
    return {doc["_id"]: _title(doc.get("_source", {})) for doc in answer["docs"]}


def _title(source: Mapping[str, Any]) -> str:
    return str(source.get("title") or source.get("text") or "")[:120]


def _system_json(row: SystemRow, system: System | None) -> dict[str, Any]:
    made: dict[str, Any] = {"name": row.name, "queries": row.evaluation.queries, "means": dict(row.evaluation.means)}
    if row.comparison is not None:
        c = row.comparison
        made["comparison"] = {
            "measure": MEASURE,
            "difference": c.difference,
            "p_value": c.p_value,
            "interval": list(c.interval),
            "wins": c.wins,
            "ties": c.ties,
            "losses": c.losses,
        }
    if system is not None:
        made["outcomes"] = dict(Counter(system.searched.outcomes.values()))
    if row.added_ms_p50 is not None:
        made |= {"added_ms_p50": row.added_ms_p50, "added_ms_p95": row.added_ms_p95}
    return made
