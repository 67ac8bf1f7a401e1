"""`querylift judge check`: compare a judge with a sheet that a person graded."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import load_settings_with_options, show_progress
from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.judge.query_options import add_grading_options

if TYPE_CHECKING:
    from querylift.index_tools.judging.grade_source import OpenedJudge
    from querylift.index_tools.judging.grader import Grader
    from querylift.index_tools.judging.sheet_check import SheetAgreement
    from querylift.plugin.settings import Settings


@click.command()
@click.argument("sheet", type=click.Path(path_type=Path))
@add_grading_options
@click.option("--record", is_flag=True, help="Write the agreement into the judge's record, for reports to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def check(
    sheet: Path,
    config: Path | None,
    engine: str | None,
    index: str,
    judge_folder: Path,
    fields: tuple[str, ...],
    record: bool,
    as_json: bool,
) -> None:
    """Compare a judge with SHEET, which a person graded.

    SHEET is a file of `querylift judge sample` with ratings. The judge grades the same pairs. The command prints how well
    both agree: Cohen's kappa over all grades and over relevant or not, macro F1, and how often which grades met. Rows
    without a rating are left out and counted.
    """
    from querylift.index_tools.judging.grade_source import open_recorded_judge

    settings = load_settings_with_options(config, engine=engine)
    judge = open_recorded_judge(judge_folder)
    agreement = compare_with_sheet(settings, judge, sheet, index=index, fields=fields, records=record)
    if record:
        record_agreement(judge_folder, agreement, source=sheet.name)
    if as_json:
        click.echo(json.dumps(asdict(agreement), indent=2))
        return
    click.echo(format_agreement(agreement, judge.grader))
    click.echo(f"\n{_describe_record(judge_folder, record=record)}")


def compare_with_sheet(
    settings: Settings,
    judge: OpenedJudge,
    sheet: Path,
    *,
    index: str,
    fields: tuple[str, ...] = (),
    records: bool = False,
) -> SheetAgreement:
    """Return the agreement of the judge with the person who graded the sheet.

    With `records`, raises SettingsError when the judge learned from a query of the sheet. Without it, warns of that.
    """
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.judging.document_texts import DEFAULT_TEXT_FIELDS
    from querylift.index_tools.judging.learned_queries import describe_learned_queries, warn_about_learned_queries
    from querylift.index_tools.judging.rating_sheet import read_rated_sheet
    from querylift.index_tools.judging.sheet_check import check_sheet

    grader = judge.grader
    rated_sheet = read_rated_sheet(sheet, grader.scale)
    queries = {pair.query for pair in rated_sheet.pairs}
    if records and (warning := describe_learned_queries(judge.learned_queries, queries)):
        raise SettingsError(f"{sheet} cannot be recorded: {warning}")
    warn_about_learned_queries(judge, queries)
    with Engine(settings) as engine, show_progress("grading", len(rated_sheet.pairs)) as advance:
        return check_sheet(
            rated_sheet, grader, engine=engine, index=index, fields=fields or DEFAULT_TEXT_FIELDS, progress=advance
        )


def format_agreement(agreement: SheetAgreement, grader: Grader) -> str:
    """Return the agreement as lines for a person."""
    from querylift.index_tools.text_columns import align_columns

    scale = grader.scale
    rows = [("", *(f"judge {grade}" for grade in scale.grades))]
    for grade, counts in zip(scale.grades, agreement.confusions, strict=True):
        rows.append((f"person {grade}", *map(str, counts)))
    facts = {
        "judge": f"{grader.name} (taught by {grader.teacher})",
        "rated pairs": f"{agreement.pair_count} of {agreement.query_count} queries; "
        f"{agreement.unrated_count} without a rating, left out"
        + (f"; {agreement.missing_count} whose document is gone" if agreement.missing_count else ""),
        "kappa, grades": _format_value(agreement.kappa_grades, agreement.kappa_grades_interval),
        f"kappa, {scale.relevant_from} or more": _format_value(
            agreement.kappa_relevant, agreement.kappa_relevant_interval
        ),
        "macro F1": f"{agreement.macro_f1:.3f}",
    }
    lines = [*(f"{name:<18}{value}" for name, value in facts.items()), "", align_columns(rows)]
    return "\n".join(lines)


def record_agreement(judge_folder: Path, agreement: SheetAgreement, *, source: str) -> None:
    """Write the agreement into the record of the judge, in place of an earlier one."""
    from querylift.index_tools.judging.judge_folder import write_agreement

    values: dict[str, Any] = {
        "queries": agreement.query_count,
        "kappa_grades": agreement.kappa_grades,
        "kappa_relevant": agreement.kappa_relevant,
        "source": source,
    }
    write_agreement(judge_folder, values)


def _format_value(value: float, interval: tuple[float, float]) -> str:
    return f"{value:z.3f} (95% interval {interval[0]:z.3f} to {interval[1]:z.3f})"


def _describe_record(judge_folder: Path, *, record: bool) -> str:
    """Return whether the agreement is in the judge's record now, and how it gets there."""
    if record:
        return f"Both kappas are recorded in {judge_folder}. Tables and reports name them now."
    return "Nothing was recorded. For tables and reports to name both kappas, add --record."
