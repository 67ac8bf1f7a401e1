"""What several commands of `querylift judge` share: options, and the next command that they print."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from querylift.index_tools.commands.options import config_option, engine_option
from querylift.index_tools.judging.grade_scale import GradeScale

_Command = TypeVar("_Command", bound=Callable[..., object])
scale_option = click.option(
    "--scale",
    "scale_text",
    default="graded",
    show_default=True,
    help="Scale of the grades: graded (0-3), umbrela (0-3), binary (0-1), or the highest grade.",
)


def format_train_command(annotations: Path, scale: GradeScale) -> str:
    """Return the command that trains a judge on a file of annotations on this scale."""
    scale_arguments = [] if scale.name == "graded" else ["--scale", scale.name]
    return shlex.join(["querylift", "judge", "train", str(annotations), *scale_arguments, "--out", "judge"])


def format_compare_command(qrels_path: Path) -> str:
    """Return the command that compares two runs by qrels of a judge."""
    return shlex.join(["querylift", "compare", "A.run", "B.run", "--qrels", str(qrels_path)])


def add_grading_options(command: _Command) -> _Command:
    """Add the options that name the index, the judge, and the fields that it reads."""
    options = (
        engine_option,
        config_option,
        click.option("--index", required=True, help="Index that holds the documents."),
        click.option(
            "--judge",
            "judge_folder",
            required=True,
            type=click.Path(path_type=Path),
            metavar="FOLDER",
            help="Folder of the judge, as `querylift judge export` writes it.",
        ),
        click.option(
            "--field",
            "fields",
            multiple=True,
            help="Field that the judge reads of a document. May be repeated [default: title and text].",
        ),
    )
    for add_option in reversed(options):
        command = add_option(command)
    return command


def add_query_options(command: _Command) -> _Command:
    """Add the argument CORPUS, and the options that name its split or a file of queries in its place."""
    options = (
        click.argument("corpus", required=False),
        click.option("--split", help="Split of the corpus [default: its only one]."),
        click.option(
            "--queries",
            "queries_path",
            type=click.Path(path_type=Path),
            help="File of queries in place of CORPUS: TREC topics, id<TAB>text, or JSON lines.",
        ),
        click.option(
            "--search-field",
            "search_fields",
            multiple=True,
            help="Field to search. May be repeated [default: fields in the index's settings table, or else contents].",
        ),
    )
    for add_option in reversed(options):
        command = add_option(command)
    return command
