"""`querylift judge qrels`: let a judge grade the first documents of several systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import load_settings_with_options, show_progress
from querylift.index_tools.judging.pooling import DEFAULT_POOL_DEPTH
from querylift.index_tools.text_columns import wrap_line
from querylift.trainer.commands.judge.query_options import (
    add_grading_options,
    add_query_options,
    format_compare_command,
)

if TYPE_CHECKING:
    from querylift.index_tools.judging.grade_source import OpenedJudge
    from querylift.index_tools.judging.grading import GradedPool
    from querylift.index_tools.judging.pooling import Pool
    from querylift.plugin.settings import Settings


@click.command()
@add_query_options
@add_grading_options
@click.option(
    "--system",
    "systems",
    multiple=True,
    help="System whose first documents are graded: plain, feedback, expander, dense, or a generator such as table:FILE. "
    "May be repeated [default: plain and feedback, and expander and dense when the settings name an expander].",
)
@click.option(
    "--depth",
    type=click.IntRange(1, 1000),
    default=DEFAULT_POOL_DEPTH,
    show_default=True,
    help="Number of first documents of each system.",
)
@click.option(
    "--same-model", is_flag=True, help="Allow a judge that is, or was taught by, the model of one of the systems."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="File of TREC qrels to write."
)
def qrels(config: Path | None, engine: str | None, judge_folder: Path, **options: Any) -> None:
    """Let a judge grade the first documents of several systems.

    The queries are those of CORPUS, judged or not, or of a file. The systems search the index, and the judge grades
    the first documents of each. FILE gets the grades as TREC qrels. FILE.judged.jsonl beside it gets the model, the
    probability and the date of each grade. A file of people's judgments is never written over.
    """
    from querylift.index_tools.judging.grade_source import open_recorded_judge
    from querylift.index_tools.judging.judged_qrels import check_replaceable_qrels

    check_replaceable_qrels(options["out"])
    settings = load_settings_with_options(config, engine=engine)
    judge_queries(settings, open_recorded_judge(judge_folder), options)


def judge_queries(settings: Settings, judge: OpenedJudge, options: dict[str, Any]) -> None:
    """Pool, grade, write, and print what was graded. `options` are those of the command by their names."""
    from querylift.index_tools.commands.search_body import choose_field_formatter
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.judging.document_texts import DEFAULT_TEXT_FIELDS
    from querylift.index_tools.judging.grading import grade_pool
    from querylift.index_tools.judging.judged_qrels import write_judged_qrels
    from querylift.index_tools.judging.learned_queries import warn_about_learned_queries
    from querylift.index_tools.judging.model_names import (
        add_encoder_remark,
        check_different_models,
        list_expansion_models,
    )
    from querylift.index_tools.judging.pooling import pool_runs
    from querylift.index_tools.judging.query_source import load_queries
    from querylift.index_tools.judging.system_runs import choose_systems, search_systems
    from querylift.trainer.commands.output_checks import check_output_file

    index, depth = options["index"], options["depth"]
    check_output_file(options["out"], inputs=filter(None, [options["queries_path"]]))
    named = load_queries(options["corpus"], split=options["split"], path=options["queries_path"])
    warn_about_learned_queries(judge, named.queries.values())
    systems = choose_systems(settings, index, options["systems"])
    models = list_expansion_models(settings, filter(None, systems.values()))
    check_different_models(models, judge.grader, allow_same=options["same_model"])
    judge = add_encoder_remark(judge, models)
    with Engine(settings) as engine:
        searched = search_systems(
            engine,
            settings,
            named.queries,
            index=index,
            systems=systems,
            depth=depth,
            format_body=choose_field_formatter(settings, index, options["search_fields"]),
        )
        pool = pool_runs(searched.runs, depth=depth)
        with show_progress("grading", pool.pair_count) as advance:
            graded = grade_pool(
                judge.grader,
                pool,
                named.queries,
                engine=engine,
                index=index,
                fields=options["fields"] or DEFAULT_TEXT_FIELDS,
                progress=advance,
            )
    write_judged_qrels(options["out"], graded.judgments, judge.source)
    for note in searched.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(_format_summary(_Summary(judge, len(named.queries), pool, graded)))
    click.echo(f"next       {format_compare_command(options['out'])}")


@dataclass(frozen=True, slots=True)
class _Summary:
    """What was graded, for a person."""

    judge: OpenedJudge
    query_count: int
    pool: Pool
    graded: GradedPool


def _format_summary(summary: _Summary) -> str:
    scale, pool, graded = summary.judge.grader.scale, summary.pool, summary.graded
    counts = scale.count_grades(judgment.grade for judgment in graded.judgments)
    relevant_count = sum(count for grade, count in counts.items() if grade >= scale.relevant_from)
    lines = [
        wrap_line(summary.judge.source.sentence),
        f"queries    {summary.query_count}: {len(pool.doc_ids)} with a document",
        f"pairs      {len(graded.judgments)} graded, {relevant_count} relevant (grade {scale.relevant_from} or more)",
        f"grades     {_format_counts(counts)}",
        f"systems    {_format_counts(pool.system_counts)}",
    ]
    if graded.textless_count:
        lines.append(f"left out   {graded.textless_count} pairs whose document has no text to read")
    return "\n".join(lines)


def _format_counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
