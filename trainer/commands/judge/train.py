"""`querylift judge train`: train a small judge on annotations."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import show_progress
from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.judge.query_options import scale_option
from querylift.trainer.commands.options import seed_option

if TYPE_CHECKING:
    from querylift.index_tools.judging.grade_scale import GradeScale
    from querylift.trainer.judge.annotations import MergedAnnotations
    from querylift.trainer.judge.student.student_config import JudgeConfig


@click.command()
@click.argument("annotations", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the trained judge.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="Configuration as a TOML file [default: built-in values]."
)
@scale_option
@click.option("--name", help="Name of the judge in tables and reports [default: the name of --out].")
@click.option(
    "--method",
    type=click.Choice(["crsd", "standard", "soft", "kl"]),
    help="How the judge learns [default: the configuration's, else crsd].",
)
@click.option(
    "--without-queries",
    type=click.Path(path_type=Path),
    help="Queries or qrels file. Its queries are not learned from.",
)
@seed_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def train(annotations: tuple[Path, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Train a judge on the files ANNOTATIONS.

    A small BERT learns the grades. It reads each pair once without the reasoning and once with it, and learns to give
    without it what it gives with it. A run that was stopped begins again; it takes minutes.
    """
    from querylift.index_tools.judging.grade_scale import parse_scale
    from querylift.trainer.judge.student.judge_model import BASE_FILES, check_bert_folder, find_base_folder
    from querylift.trainer.judge.student.student_config import load_judge_config
    from querylift.trainer.manifest import Manifest
    from querylift.trainer.student.libraries import check_training_packages

    scale = parse_scale(options["scale_text"])
    config = load_judge_config(options["config"], method=options["method"], seed=options["seed"])
    check_training_packages()
    name, excluded = options["name"] or out.resolve().name, options["without_queries"]
    base = find_base_folder(config.student.base)
    check_bert_folder(base)
    _check_out_folder(out, base)
    merged, left_out = _read_annotations(annotations, scale, excluded)
    inputs = {f"annotations {number}": path for number, path in enumerate(annotations, 1)}
    inputs |= {f"base {file_name}": base / file_name for file_name in BASE_FILES}
    manifest = Manifest(
        out,
        stage="judge train",
        inputs=inputs | ({"without queries": excluded} if excluded else {}),
        settings=config.model_dump() | {"scale": asdict(scale), "name": name},
        seed=config.training.seed,
        is_folder=True,
    )
    if not manifest.is_done:
        with manifest.record_run() as results:
            results |= _train(merged, config, scale, out=out, name=name) | {"left_out": left_out}
    click.echo(
        json.dumps(dict(manifest.results), indent=2) if as_json else _format_summary(dict(manifest.results), out)
    )


def _check_out_folder(out: Path, base: Path) -> None:
    """Raise SettingsError when `out` is the base, or a folder with files that no training wrote."""
    from querylift.trainer.manifest import locate_manifest

    if out.resolve() == base.resolve():
        raise SettingsError(f"--out is {out}, which is the base; name another folder")
    if out.is_dir() and any(out.iterdir()) and not locate_manifest(out, is_folder=True).exists():
        raise SettingsError(f"--out is {out}, which holds files but no training; name another folder")


def _read_annotations(
    paths: tuple[Path, ...], scale: GradeScale, excluded: Path | None
) -> tuple[MergedAnnotations, int]:
    """Return the annotations of all files, each pair once, and the number of lines that were left out.

    Lines of queries that are not to be learned from are left out.
    """
    from querylift.trainer.judge.annotations import describe_missing_grades, merge_duplicates, read_annotations
    from querylift.trainer.judge.student.training_pairs import (
        check_grades,
        leave_out_queries,
        read_excluded_queries,
    )

    all_rows = [row for path in paths for row in read_annotations(path, scale)]
    rows = leave_out_queries(all_rows, read_excluded_queries(excluded) if excluded else {})
    merged = merge_duplicates(rows)
    source = ", ".join(map(str, paths))
    check_grades(merged.annotations, source=f"{source} without the queries of {excluded}" if excluded else source)
    if warning := describe_missing_grades(Counter(row.grade for row in merged.annotations), scale):
        click.echo(f"warning: {warning}", err=True)
    return merged, len(all_rows) - len(rows)


def _train(
    merged: MergedAnnotations, config: JudgeConfig, scale: GradeScale, *, out: Path, name: str
) -> dict[str, Any]:
    from querylift.index_tools.judging.learned_queries import compute_query_digests
    from querylift.trainer.judge.student.judge_model import load_judge_model
    from querylift.trainer.judge.student.judge_training import train_judge
    from querylift.trainer.judge.student.saved_judge import make_record, save_judge

    annotations = merged.annotations
    model = load_judge_model(config.student, grade_count=len(scale.grades))
    total = min(len(annotations), config.training.max_pairs) * config.training.epochs
    with show_progress("training", total) as advance:
        summary = train_judge(model, annotations, config, scale, progress=advance)
    teachers = ", ".join(sorted({annotation.model for annotation in annotations}))
    record = make_record(
        config.student,
        scale,
        name=name,
        teacher=teachers,
        thresholds=summary.thresholds,
        annotation_count=len(annotations),
        learned_queries=compute_query_digests(annotation.query for annotation in annotations),
    )
    save_judge(model, record, out)
    return {
        "annotations": len(annotations),
        "queries": len({annotation.query_id for annotation in annotations}),
        "conflicting_duplicates": merged.conflict_count,
        "teacher": teachers,
        "method": config.training.method,
        "pairs": summary.pairs,
        "with_reasoning": summary.with_reasoning,
        "losses": [round(loss, 4) for loss in summary.losses],
        "thresholds": [round(threshold, 4) for threshold in summary.thresholds],
    }


def _format_summary(results: dict[str, Any], out: Path) -> str:
    losses = ", ".join(f"{loss:.3f}" for loss in results["losses"])
    lines = [
        f"annotations  {results['annotations']} of {results['queries']} queries, by {results['teacher']}",
        f"trained on   {results['pairs']} pairs, {results['with_reasoning']} of them read with reasoning",
        f"loss         {losses} after each epoch",
    ]
    if results["conflicting_duplicates"]:
        lines.append(
            f"duplicates   {results['conflicting_duplicates']} pairs had several grades; the majority's was taken"
        )
    if results["left_out"]:
        lines.append(f"left out     {results['left_out']} annotations of the queries of --without-queries")
    lines += [f"judge        {out}", f"next         querylift judge export {out} --out {out}.served"]
    return "\n".join(lines)
