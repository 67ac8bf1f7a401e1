"""`querylift judge sample`: write a sheet of pairs for a person to grade."""

from __future__ import annotations

import random
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import load_settings_with_options, show_progress
from querylift.index_tools.text_columns import wrap_line
from querylift.trainer.commands.judge.query_options import add_grading_options, add_query_options

if TYPE_CHECKING:
    from querylift.index_tools.judging.grade_source import OpenedJudge
    from querylift.index_tools.judging.grader import Grader
    from querylift.plugin.settings import Settings

_QUERIES_PER_PAIR = 2
"""The documents of so many queries for each wanted pair are graded. So rare grades are found too."""


@click.command()
@add_query_options
@add_grading_options
@click.option("--pairs", type=click.IntRange(10, 10_000), default=50, show_default=True, help="Pairs in the sheet.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="CSV file to write, such as sheet.csv.")
def sample(config: Path | None, engine: str | None, judge_folder: Path, **options: Any) -> None:
    """Write a sheet of pairs for a person to grade.

    The pairs are spread over the judge's grades and over the queries. The judge's grades are not in the sheet. Fill in
    the column `rating`, and compare with `querylift judge check`. sheet.quepid.csv beside sheet.csv is for Quepid.
    """
    from querylift.index_tools.judging.grade_source import open_recorded_judge

    settings = load_settings_with_options(config, engine=engine)
    write_sample(
        settings, open_recorded_judge(judge_folder), options | {"judge_folder": judge_folder, "engine": engine}
    )


def write_sample(settings: Settings, judge: OpenedJudge, options: dict[str, Any]) -> None:
    """Draw the pairs, write both files, and print where they are. `options` are those of the command by their names.

    Warns when the judge learned from the queries, because `judge check --record` refuses a sheet of such queries.
    """
    from querylift.index_tools.commands.search_body import choose_field_formatter
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.judging.document_texts import DEFAULT_TEXT_FIELDS
    from querylift.index_tools.judging.grading import grade_pool
    from querylift.index_tools.judging.learned_queries import warn_about_learned_queries
    from querylift.index_tools.judging.pooling import DEFAULT_POOL_DEPTH, pool_runs
    from querylift.index_tools.judging.query_source import load_queries
    from querylift.index_tools.judging.rating_sheet import (
        SheetPair,
        draw_pairs,
        locate_quepid_sheet,
        write_rating_sheet,
    )
    from querylift.index_tools.searching import search_offline
    from querylift.trainer.commands.output_checks import check_output_file

    grader = judge.grader
    index, out, seed = options["index"], options["out"], options["seed"]
    fields = options["fields"] or DEFAULT_TEXT_FIELDS
    check_output_file(out, inputs=filter(None, [options["queries_path"]]))
    _check_no_ratings(out)
    queries = load_queries(options["corpus"], split=options["split"], path=options["queries_path"]).queries
    drawn_ids = random.Random(seed).sample(sorted(queries), min(len(queries), _QUERIES_PER_PAIR * options["pairs"]))
    drawn_queries = {query_id: " ".join(queries[query_id].split()) for query_id in drawn_ids}
    warn_about_learned_queries(judge, drawn_queries.values())
    with Engine(settings) as engine:
        searched = search_offline(
            engine,
            drawn_queries,
            index=index,
            depth=DEFAULT_POOL_DEPTH,
            format_body=choose_field_formatter(settings, index, options["search_fields"]),
        )
        pool = pool_runs({"plain": searched.run})
        with show_progress("grading", pool.pair_count) as advance:
            graded = grade_pool(
                grader, pool, drawn_queries, engine=engine, index=index, fields=fields, progress=advance
            )
    drawn = draw_pairs(graded.judgments, options["pairs"], seed=seed)
    pairs = [
        SheetPair(drawn_queries[judgment.query_id], judgment.doc_id, graded.texts[judgment.doc_id])
        for judgment in drawn
    ]
    write_rating_sheet(out, pairs)
    query_count = len({judgment.query_id for judgment in drawn})
    click.echo(
        f"{len(pairs)} pairs of {query_count} queries\n"
        f"for a spreadsheet: {out}\n"
        f"for Quepid:        {locate_quepid_sheet(out)}\n"
        f"Rate each pair from 0 to {grader.scale.highest}:\n{_format_meanings(grader)}\n"
        f"Then compare:\n  {_format_check_command(options)}"
    )


def _check_no_ratings(out: Path) -> None:
    """Raise SettingsError when the file may hold a person's ratings already."""
    from querylift.index_tools.judging.rating_sheet import locate_quepid_sheet
    from querylift.plugin.errors import SettingsError

    for path in (out, locate_quepid_sheet(out)):
        if path.exists():
            raise SettingsError(f"{path} exists and may hold a person's ratings; name another file, or remove it")


def _format_meanings(grader: Grader) -> str:
    meanings = enumerate(grader.scale.meanings)
    return "\n".join(wrap_line(f"  {grade}  {meaning}".rstrip()) for grade, meaning in meanings)


def _format_check_command(options: dict[str, Any]) -> str:
    """Return the command that compares the sheet, with the fields and the engine that this command was given."""
    arguments = [str(options["out"]), "--judge", str(options["judge_folder"]), "--index", options["index"]]
    if options["engine"]:
        arguments += ["--engine", options["engine"]]
    for field in options["fields"]:
        arguments += ["--field", field]
    return shlex.join(["querylift", "judge", "check", *arguments])
