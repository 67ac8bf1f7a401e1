"""`querylift compare`: compare two runs of the same queries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.corpora.records import Qrels, Run
from querylift.index_tools.corpora.trec_files import read_qrels, read_run
from querylift.index_tools.evaluation.measures import LABELS, MAIN_MEASURE, MEASURES, Evaluation, evaluate_run
from querylift.index_tools.judging.grade_source import GradeSource
from querylift.index_tools.judging.judged_qrels import choose_relevant_grade, find_grade_source
from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.index_tools.evaluation.comparison import Comparison
    from querylift.index_tools.evaluation.html_report import Hit, QueryDetail


@dataclass(frozen=True, slots=True)
class _MeasuredRun:
    """A run file, its run and its measures."""

    path: Path
    run: Run
    evaluation: Evaluation


@click.command()
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option(
    "--qrels",
    "qrels_path",
    type=click.Path(path_type=Path),
    required=True,
    help="File of judgments, in TREC or BEIR form.",
)
@click.option(
    "--measure", type=click.Choice(MEASURES), default=MAIN_MEASURE, show_default=True, help="Measure to compare."
)
@click.option(
    "--relevant-from",
    type=click.IntRange(min=1),
    help="Lowest grade that counts as relevant, for MAP, MRR and recall [default: that of the judge's scale, or 1].",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Also write a report as a page.",
)
def compare(
    run_a: Path,
    run_b: Path,
    qrels_path: Path,
    measure: str,
    relevant_from: int | None,
    as_json: bool,
    report_path: Path | None,
) -> None:
    """Test whether RUN_B is better than the baseline RUN_A.

    Both are TREC runs of the same queries. Every difference is B minus A. A judged
    query that a run leaves out counts 0. The p value comes from a paired
    randomisation test.
    """
    from querylift.index_tools.evaluation.comparison import compare_runs
    from querylift.index_tools.text_columns import replace_unprintable, wrap_line

    qrels, judged_by = read_qrels(qrels_path), find_grade_source(qrels_path)
    grade = relevant_from or choose_relevant_grade(judged_by)
    a, b = (_measure_run(path, qrels, qrels_path, relevant_from=grade) for path in (run_a, run_b))
    comparison = compare_runs(a.evaluation.per_query[measure], b.evaluation.per_query[measure])
    if report_path is not None:
        _write_html_report(
            report_path,
            a,
            b,
            comparison,
            qrels=qrels,
            corpus=qrels_path.name,
            measure=measure,
            grade=grade,
            judged_by=judged_by,
        )
    if as_json:
        values = _comparison_to_json(a, b, comparison, measure=measure)
        click.echo(json.dumps(values | {"judged_by": judged_by.to_json() if judged_by else None}, indent=2))
    else:
        lines = [*_iter_output_lines(a, b, comparison, measure=measure)]
        if judged_by is not None:
            lines += ["", *wrap_line(judged_by.sentence).splitlines()]
        click.echo("\n".join(map(replace_unprintable, lines)))


def _measure_run(path: Path, qrels: Qrels, qrels_path: Path, *, relevant_from: int) -> _MeasuredRun:
    run = read_run(path)
    try:
        evaluation = evaluate_run(run, qrels, relevant_from=relevant_from)
    except ValueError as error:
        raise SettingsError(f"{qrels_path} cannot be used: {error}") from error
    if len(evaluation.missing) == evaluation.query_count:
        raise SettingsError(
            f"{path} answers no query that {qrels_path} judges; name a run and qrels of the same queries"
        )
    return _MeasuredRun(path, run, evaluation)


def _comparison_to_json(a: _MeasuredRun, b: _MeasuredRun, comparison: Comparison, *, measure: str) -> dict[str, Any]:
    return {
        "a": _run_to_json(a),
        "b": _run_to_json(b),
        "queries": a.evaluation.query_count,
        "without_relevant": list(a.evaluation.without_relevant),
        "measure": measure,
        "verdict": comparison.verdict,
        "difference": comparison.difference,
        "interval_95": list(comparison.interval),
        "p_value": comparison.p_value,
        "wins": comparison.wins,
        "ties": comparison.ties,
        "losses": comparison.losses,
        "worst": [{"query_id": query_id, "difference": difference} for query_id, difference in comparison.worst],
        "best": [{"query_id": query_id, "difference": difference} for query_id, difference in comparison.best],
    }


def _run_to_json(run: _MeasuredRun) -> dict[str, Any]:
    evaluation = run.evaluation
    return {
        "run": str(run.path),
        "means": dict(evaluation.means),
        "missing": list(evaluation.missing),
        "unjudged_share_of_first_ten": evaluation.unjudged_share,
    }


def _iter_output_lines(a: _MeasuredRun, b: _MeasuredRun, comparison: Comparison, *, measure: str) -> Iterator[str]:
    from querylift.index_tools.evaluation.html_report import format_difference, format_query_count, format_verdict

    yield from (f"A  {a.path}", f"B  {b.path}", "")
    yield from _format_means(a.evaluation, b.evaluation)
    yield ""
    yield f"B {format_verdict(comparison, LABELS[measure])}"
    low, high = comparison.interval
    yield f"95% interval      {format_difference(low)} to {format_difference(high)}"
    counts = f"{comparison.wins}/{comparison.ties}/{comparison.losses}"
    yield f"wins/ties/losses  {counts} of {format_query_count(a.evaluation.query_count)}"
    yield from _iter_omission_lines(a.evaluation, b.evaluation)
    if comparison.worst:
        yield from (
            "",
            f"Most harmed queries, {LABELS[measure]}",
            *(f"  {format_difference(difference)}  {query_id}" for query_id, difference in comparison.worst),
        )


def _format_means(a: Evaluation, b: Evaluation) -> list[str]:
    from querylift.index_tools.evaluation.html_report import format_difference, format_measure
    from querylift.index_tools.text_columns import align_columns

    rows = [("", "A", "B", "diff")]
    for measure in MEASURES:
        mean_a, mean_b = a.means[measure], b.means[measure]
        rows.append(
            (LABELS[measure], format_measure(mean_a), format_measure(mean_b), format_difference(mean_b - mean_a))
        )
    return align_columns(rows).splitlines()


def _iter_omission_lines(a: Evaluation, b: Evaluation) -> Iterator[str]:
    from querylift.index_tools.evaluation.html_report import format_query_count

    if a.missing or b.missing:
        yield f"counted as 0      {format_query_count(len(a.missing))} in A, {len(b.missing)} in B, without any document"
    if a.without_relevant:
        yield f"not counted       {format_query_count(len(a.without_relevant), 'judged')} without a relevant document"
    if a.unjudged_share is not None and b.unjudged_share is not None:
        yield f"never judged      {a.unjudged_share:.0%} of the first ten hits in A, {b.unjudged_share:.0%} in B"


def _write_html_report(
    path: Path,
    a: _MeasuredRun,
    b: _MeasuredRun,
    comparison: Comparison,
    *,
    qrels: Qrels,
    corpus: str,
    measure: str,
    grade: int,
    judged_by: GradeSource | None,
) -> None:
    from querylift.index_tools.evaluation.html_report import Report, SystemRow, write_report

    names = [a.path.name, b.path.name] if a.path.name != b.path.name else [str(a.path), str(b.path)]
    details = {
        query_id: _make_query_detail(query_id, a.run, b.run, qrels=qrels)
        for query_id, _ in (*comparison.worst, *comparison.best)
    }
    systems = (
        SystemRow(names[0], a.evaluation),
        SystemRow(names[1], b.evaluation, comparison, details=details),
    )
    today = date.today().isoformat()
    write_report(path, Report(systems, corpus, date=today, measure=measure, relevant_from=grade, judged_by=judged_by))
    click.echo(f"wrote {path}", err=True)


def _make_query_detail(query_id: str, a: Run, b: Run, *, qrels: Qrels) -> QueryDetail:
    from querylift.index_tools.evaluation.html_report import QueryDetail

    hits_a, hits_b = (_make_hits(run.get(query_id, []), qrels[query_id]) for run in (a, b))
    return QueryDetail(query="", expansion="", hits_before=hits_a, hits_after=hits_b)


def _make_hits(doc_ids: list[str], grades: dict[str, int]) -> tuple[Hit, ...]:
    from querylift.index_tools.evaluation.html_report import SHOWN_HITS, Hit

    return tuple(Hit(doc_id, grade=grades.get(doc_id)) for doc_id in doc_ids[:SHOWN_HITS])
