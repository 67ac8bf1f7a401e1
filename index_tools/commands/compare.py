"""`querylift compare`: two runs of the same queries, set against each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.corpora.trec_files import Qrels, Run, read_qrels, read_run
from querylift.index_tools.evaluation.measures import LABELS, MEASURES, Evaluation, evaluate
from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.index_tools.evaluation.comparison import Comparison
    from querylift.index_tools.evaluation.report import Hit, QueryDetail


@dataclass(frozen=True, slots=True)
class _Measured:
    """A run file and how it did."""

    path: Path
    run: Run
    evaluation: Evaluation


@click.command()
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option("--qrels", "qrels_path", type=click.Path(path_type=Path), required=True, help="Judgments, TREC or BEIR.")
@click.option(
    "--measure", type=click.Choice(MEASURES), default="ndcg_at_10", show_default=True, help="What to compare."
)
@click.option(
    "--relevant-from", type=click.IntRange(min=1), default=1, show_default=True, help="Lowest relevant grade."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--report", "report_path", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page too.")
def compare(
    run_a: Path,
    run_b: Path,
    qrels_path: Path,
    measure: str,
    relevant_from: int,
    as_json: bool,
    report_path: Path | None,
) -> None:
    """Say whether RUN_B, a TREC run, is better than RUN_A, the baseline, query by query.

    Differences are B minus A. A judged query that a run leaves out counts 0. p is that of a paired randomisation test.
    """
    from querylift.index_tools.evaluation.comparison import compare as compared

    qrels = read_qrels(qrels_path)
    a, b = (_measured(path, qrels, qrels_path, relevant_from=relevant_from) for path in (run_a, run_b))
    comparison = compared(a.evaluation.per_query[measure], b.evaluation.per_query[measure])
    if report_path is not None:
        _write_report(
            report_path, a, b, comparison, qrels=qrels, corpus=qrels_path.name, measure=measure, grade=relevant_from
        )
    if as_json:
        click.echo(json.dumps(_json(a, b, comparison, measure=measure), indent=2))
    else:
        click.echo("\n".join(_printable(line) for line in _lines(a, b, comparison, measure=measure)))


def _measured(path: Path, qrels: Qrels, qrels_path: Path, *, relevant_from: int) -> _Measured:
    run = read_run(path)
    try:
        evaluation = evaluate(run, qrels, relevant_from=relevant_from)
    except ValueError as error:
        raise SettingsError(f"{qrels_path} cannot be used: {error}") from error
    if len(evaluation.missing) == evaluation.queries:
        raise SettingsError(
            f"{path} answers no query that {qrels_path} judges; name a run and qrels of the same queries"
        )
    return _Measured(path, run, evaluation)


def _json(a: _Measured, b: _Measured, c: Comparison, *, measure: str) -> dict[str, Any]:
    return {
        "a": _run_json(a),
        "b": _run_json(b),
        "queries": a.evaluation.queries,
        "without_relevant": list(a.evaluation.without_relevant),
        "measure": measure,
        "verdict": c.verdict,
        "difference": c.difference,
        "interval_95": list(c.interval),
        "p_value": c.p_value,
        "wins": c.wins,
        "ties": c.ties,
        "losses": c.losses,
        "worst": [{"query_id": query_id, "difference": d} for query_id, d in c.worst],
        "best": [{"query_id": query_id, "difference": d} for query_id, d in c.best],
    }


def _run_json(measured: _Measured) -> dict[str, Any]:
    evaluation = measured.evaluation
    return {"run": str(measured.path), "means": dict(evaluation.means), "missing": list(evaluation.missing)}


def _lines(a: _Measured, b: _Measured, c: Comparison, *, measure: str) -> Iterator[str]:
    from querylift.index_tools.evaluation.report import queries, signed, verdict_sentence

    yield from (f"A  {a.path}", f"B  {b.path}", "")
    yield from _means(a.evaluation, b.evaluation)
    yield ""
    yield f"B {verdict_sentence(c, LABELS[measure])}"
    yield f"95% interval      {signed(c.interval[0])} to {signed(c.interval[1])}"
    yield f"wins/ties/losses  {c.wins}/{c.ties}/{c.losses} of {queries(a.evaluation.queries)}"
    yield from _omissions(a.evaluation, b.evaluation)
    if c.worst:
        yield from ("", f"Most harmed queries, {LABELS[measure]}", *(f"  {signed(d)}  {q}" for q, d in c.worst))


def _means(a: Evaluation, b: Evaluation) -> list[str]:
    from querylift.index_tools.evaluation.report import number, signed
    from querylift.index_tools.evaluation.text_table import aligned

    rows = [(LABELS[m], number(a.means[m]), number(b.means[m]), signed(b.means[m] - a.means[m])) for m in MEASURES]
    return aligned([("", "A", "B", "diff"), *rows]).splitlines()


def _omissions(a: Evaluation, b: Evaluation) -> Iterator[str]:
    from querylift.index_tools.evaluation.report import queries

    if a.missing or b.missing:
        yield f"counted as 0      {queries(len(a.missing))} in A, {len(b.missing)} in B, for which nothing was found"
    if a.without_relevant:
        yield f"not counted       {queries(len(a.without_relevant), 'judged')} without a relevant document"


def _printable(line: str) -> str:
    """Ids come from files: an escape sequence in one must not reach the terminal."""
    return "".join(character if character.isprintable() else "?" for character in line)


def _write_report(
    path: Path, a: _Measured, b: _Measured, c: Comparison, *, qrels: Qrels, corpus: str, measure: str, grade: int
) -> None:
    from querylift.index_tools.evaluation.report import Report, SystemRow, write_report

    names = [a.path.name, b.path.name] if a.path.name != b.path.name else [str(a.path), str(b.path)]
    details = {query_id: _detail(query_id, a.run, b.run, qrels=qrels) for query_id, _ in (*c.worst, *c.best)}
    systems = (
        SystemRow(names[0], a.evaluation),
        SystemRow(names[1], b.evaluation, c, details=details),
    )
    today = date.today().isoformat()
    write_report(path, Report(systems, corpus, date=today, measure=measure, relevant_from=grade))
    click.echo(f"wrote {path}", err=True)


def _detail(query_id: str, a: Run, b: Run, *, qrels: Qrels) -> QueryDetail:
    from querylift.index_tools.evaluation.report import QueryDetail

    before, after = (_hits(run.get(query_id, []), qrels[query_id]) for run in (a, b))
    return QueryDetail(query="", expansion="", hits_before=before, hits_after=after)


def _hits(doc_ids: list[str], grades: dict[str, int]) -> tuple[Hit, ...]:
    from querylift.index_tools.evaluation.report import SHOWN_HITS, Hit

    return tuple(Hit(doc_id, grade=grades.get(doc_id)) for doc_id in doc_ids[:SHOWN_HITS])
