"""`querylift judge convert`: make annotations of grades that were made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import show_progress
from querylift.plugin.errors import DataError, SettingsError
from querylift.trainer.commands.judge.query_options import format_train_command, scale_option

if TYPE_CHECKING:
    from querylift.index_tools.judging.grade_scale import GradeScale
    from querylift.trainer.judge.annotations import Annotation
    from querylift.trainer.judge.conversion import ConversionResult, ImportedRow, RowTexts, SelectedRows


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--corpus", help="Corpus of the queries and documents. Rows that hold both texts do without.")
@click.option("--split", help="Split of the corpus [default: its only one].")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File of annotations to write.")
@click.option(
    "--model",
    help="Use only the rows of this model. Rows that name no model get this name [default: people, for judgments].",
)
@scale_option
@click.option(
    "--facts",
    "facts_path",
    type=click.Path(path_type=Path),
    help="File of each query's key facts, for the reasoning of rows of criteria.",
)
@click.option(
    "--cut",
    "cuts",
    type=int,
    multiple=True,
    help="Lowest sum of the four criteria for grade 1, then for grade 2, and so on; repeated [default: 7, 9, 12].",
)
@click.option(
    "--like",
    "like_path",
    type=click.Path(path_type=Path),
    help="Judgments, in place of --cut: grades of criteria become as frequent as theirs. Name those of training queries.",
)
@click.option(
    "--max-words",
    type=click.IntRange(1),
    default=150,
    show_default=True,
    help="Longest text of a document from the corpus, in words.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert(files: tuple[Path, ...], out: Path, scale_text: str, as_json: bool, **options: Any) -> None:
    """Make annotations of the rows in FILES.

    A row is an annotation with a grade, or the four criteria of a model without a
    grade, as JSON. A file may also hold judgments in TREC or BEIR form. Criteria
    get a grade by their sum, and a reasoning by a template.

    Several rows of one pair become one: the grade of most rows wins.
    """
    from querylift.index_tools.judging.grade_scale import parse_scale
    from querylift.trainer.commands.output_checks import check_output_file
    from querylift.trainer.judge.annotations import describe_missing_grades
    from querylift.trainer.judge.conversion import convert_rows, read_imported_rows, select_model
    from querylift.trainer.judge.reasoning_template import read_facts

    scale = parse_scale(scale_text)
    check_output_file(out, inputs=filter(None, [*files, options["facts_path"], options["like_path"]]))
    _check_no_answers(out)
    facts = read_facts(options["facts_path"]) if options["facts_path"] else {}
    all_rows = [row for path in files for row in read_imported_rows(path, scale)]
    selected = select_model(all_rows, options["model"])
    thresholds = _choose_thresholds(selected.rows, scale, options)
    texts = _read_texts(selected.rows, options)
    with show_progress("converting", len(selected.rows)) as advance:
        result = convert_rows(
            selected.rows,
            texts,
            thresholds=thresholds,
            facts=facts,
            default_model=options["model"],
            progress=advance,
        )
    if not result.annotations:
        raise SettingsError(
            f"no row has its query and its document in {options['corpus']}; name the corpus that the rows are about"
        )
    _write_annotations(result.annotations, out)
    counts = _count_results(selected, result, scale, thresholds)
    click.echo(json.dumps(counts, indent=2) if as_json else _format_summary(out, counts))
    if warning := describe_missing_grades(counts["grades"], scale):
        click.echo(f"warning: {warning}", err=True)
    elif not as_json:
        click.echo(f"next: {format_train_command(out, scale)}")


def _check_no_answers(out: Path) -> None:
    """Raise SettingsError when the file has answers of `querylift judge annotate`, which may have cost money."""
    from querylift.trainer.manifest import locate_manifest

    manifest = locate_manifest(out, is_folder=False)
    if out.exists() and manifest.exists():
        raise SettingsError(
            f"--out is {str(out)!r}, which holds answers of `querylift judge annotate`, as {manifest.name} shows; "
            "name another file"
        )


def _choose_thresholds(rows: Sequence[ImportedRow], scale: GradeScale, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the thresholds of --cut or --like, or the default ones. They are empty when no row has criteria alone."""
    from querylift.trainer.judge.conversion import choose_thresholds_like
    from querylift.trainer.judge.criteria_grades import check_thresholds, spread_thresholds

    cuts, like_path = options["cuts"], options["like_path"]
    if cuts and like_path:
        raise SettingsError("--cut and --like are both given; give one of the two")
    if like_path:
        return choose_thresholds_like(rows, like_path, scale)
    if cuts:
        check_thresholds(cuts, highest=scale.highest)
    has_criteria = any(row.grade is None for row in rows)
    return tuple(cuts) or (spread_thresholds(scale.highest) if has_criteria else ())


def _read_texts(rows: Sequence[ImportedRow], options: Mapping[str, Any]) -> RowTexts:
    from querylift.index_tools.corpora.corpus_names import load_corpus
    from querylift.trainer.commands.arguments import check_split
    from querylift.trainer.judge.conversion import RowTexts, read_row_texts

    incomplete_row = next((row for row in rows if not row.query or not row.document), None)
    if incomplete_row is None:
        return RowTexts()
    if options["corpus"] is None:
        problem = "this row lacks the text of its query or its document; name the corpus that has them with --corpus"
        raise DataError(incomplete_row.path, incomplete_row.line_number, problem)
    corpus = load_corpus(options["corpus"])
    check_split(corpus, options["split"])
    if not corpus.has_documents:
        raise SettingsError(f"{corpus.name!r} has no documents; name a corpus that has some with --corpus")
    return read_row_texts(rows, corpus, options["split"], max_words=options["max_words"])


def _write_annotations(annotations: Sequence[Annotation], out: Path) -> None:
    from querylift.plugin.files import open_for_replacement

    with open_for_replacement(out) as stream:
        for annotation in annotations:
            stream.write(json.dumps(annotation.to_json(), ensure_ascii=False).encode() + b"\n")


def _count_results(
    selected: SelectedRows, result: ConversionResult, scale: GradeScale, thresholds: Sequence[int]
) -> dict[str, Any]:
    return {
        "rows": len(selected.rows),
        "other_models": selected.other_count,
        "lost": result.lost_count,
        "written": len(result.annotations),
        "conflicts": result.conflict_count,
        "without_reasoning": sum(not annotation.reasoning for annotation in result.annotations),
        "cuts": list(thresholds),
        "grades": scale.count_grades(annotation.grade for annotation in result.annotations),
    }


def _format_summary(out: Path, counts: Mapping[str, Any]) -> str:
    lines = [
        "rows: {rows:,} read, {other_models:,} of other models left out, {lost:,} left out without a text".format(
            **counts
        ),
        "pairs: {written:,} written, {conflicts:,} of them had different grades, {without_reasoning:,} without reasoning".format(
            **counts
        ),
    ]
    if counts["cuts"]:
        lines.append(f"cuts: {', '.join(map(str, counts['cuts']))}")
    grades = ", ".join(f"{grade}: {count:,}" for grade, count in counts["grades"].items())
    return "\n".join([*lines, f"grades: {grades}", f"annotations: {out}"])
