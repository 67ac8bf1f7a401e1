"""`querylift quantize gate`."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.index_tools.commands.options import (
    config_option,
    engine_option,
    load_settings_with_options,
    show_progress,
)
from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.settings import Settings, enable_index

if TYPE_CHECKING:
    from querylift.index_tools.evaluation.experiment import Task
    from querylift.quantize.acceptance.gate import ModelFile
    from querylift.quantize.acceptance.model_card import GateResult


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--on",
    "collections",
    multiple=True,
    required=True,
    metavar="INDEX=CORPUS[:SPLIT]",
    help="An index, and the corpus whose judged queries to search on it. Repeatable.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="GGUF file to compare with [default: the file that FOLDER was made from].",
)
@click.option("--levels", help="Levels to measure, separated by commas [default: all levels in FOLDER].")
@click.option(
    "--bound",
    type=click.FloatRange(min=0, max=100, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="Largest acceptable loss, in points of nDCG@10 (0-100).",
)
@click.option(
    "--limit", type=click.IntRange(min=2), help="Queries to sample from each collection [default: all of them]."
)
@click.option("--seed", default=0, show_default=True, help="Random seed of the sample.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of the model.")
@click.option("--weight", type=float, help="Weight of the expansion [default: from the settings, else 0.2].")
@click.option("--licence", help="Licence to name in the model card.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@engine_option
@config_option
def gate(folder: Path, engine: str | None, config: Path | None, as_json: bool, **options: Any) -> None:
    """Find the smallest level in FOLDER that searches as well as the full file.

    FOLDER is the output of `querylift quantize make`. A level passes when a one-sided paired test at 95% proves
    non-inferiority: against the full file it loses less than --bound. The test is corrected for the number of levels.

    One level needs at least 598 judged queries at a bound of 0.5, and five levels need 919. A bound of 1 takes half as many.

    Writes the model card FOLDER/README.md and FOLDER/gate.json. The exit code is 1 when no level passes.
    """
    try:
        from querylift.quantize.acceptance import model_card
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gguf", "quantize") from error

    reference, levels = _find_model_files(folder, options["reference"], options["levels"])
    tasks = [_load_task(collection, options["limit"], options["seed"]) for collection in options["collections"]]
    settings = load_settings_with_options(config, engine=engine)
    result = asyncio.run(_run_gate(reference, levels, tasks, settings, options))
    about = model_card.read_model_description(reference.path)
    if options["licence"]:
        about |= {"Licence": options["licence"]}
    card = model_card.write_results(result, folder, about=about)
    if as_json:
        click.echo(json.dumps(model_card.convert_to_json(result), indent=2))
    else:
        click.echo(f"{model_card.format_table(result)}\n\n{model_card.format_conclusion(result)}\ncard: {card}")
    if result.chosen is None:
        sys.exit(1)


async def _run_gate(
    reference: ModelFile,
    levels: Sequence[ModelFile],
    tasks: Sequence[Task],
    settings: Settings,
    options: dict[str, Any],
) -> GateResult:
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.evaluation.conclusion import describe_refusals
    from querylift.index_tools.evaluation.experiment import System, check_baseline_hits
    from querylift.index_tools.searching import search_offline
    from querylift.quantize.acceptance.gate import (
        check_query_count,
        choose_smallest,
        compute_ndcg,
        decide_levels,
        measure_level,
    )
    from querylift.quantize.acceptance.model_card import GateResult

    threads = options["threads"]
    bound = options["bound"] / 100
    index_settings = {} if options["weight"] is None else {"weight": options["weight"]}
    with Engine(settings) as engine:
        unexpanded: dict[str, float] = {}
        for task in tasks:
            searched = search_offline(engine, task.queries, index=task.index)
            check_baseline_hits(task, System("no expansion", searched))
            if searched.refusals:
                click.echo(f"{task.index}: {describe_refusals(searched.refusals)}", err=True)
            unexpanded |= compute_ndcg(task, searched)
        check_query_count(len(unexpanded), level_count=len(levels), bound=bound)
        measurements = []
        for model_file in [reference, *levels]:
            with show_progress(model_file.name, sum(len(task.queries) for task in tasks)) as advance:
                measurement = await measure_level(
                    model_file,
                    tasks,
                    engine=engine,
                    settings=settings,
                    index_settings=index_settings,
                    threads=threads,
                    progress=advance,
                )
            measurements.append(measurement)
        decisions = decide_levels(measurements[0], measurements[1:], bound=bound)
        rules = enable_index(settings, tasks[0].index, **index_settings).index[tasks[0].index]
        return GateResult(
            unexpanded=unexpanded,
            reference=measurements[0],
            decisions=decisions,
            chosen=choose_smallest(decisions),
            tasks=tasks,
            engine=str(engine.read_info()),
            bound=bound,
            rules=f"mode {rules.mode}, weight {rules.weight:g}",
            threads=threads,
        )


def _find_model_files(
    folder: Path, reference: Path | None, level_list: str | None
) -> tuple[ModelFile, list[ModelFile]]:
    """Return the reference and the levels to measure. Raises SettingsError when one of them is missing."""
    from querylift.plugin.files import compute_file_digest
    from querylift.quantize.acceptance.gate import ModelFile
    from querylift.quantize.levels.make_levels import read_manifest

    manifest = read_manifest(folder)
    levels = {name: ModelFile(name, folder / entry["file"]) for name, entry in manifest["levels"].items()}
    names = [name.strip().upper() for name in level_list.split(",")] if level_list else list(levels)
    unknown_names = [name for name in names if name not in levels]
    if unknown_names or not names:
        problem = f"holds no level {unknown_names[0]}" if unknown_names else "holds no level"
        raise SettingsError(
            f"{folder} {problem}, only {', '.join(levels) or 'a manifest'}; make it with `querylift quantize make`"
        )
    source = manifest["source"]
    for path in [reference] if reference else [folder / source["file"], folder.parent / source["file"]]:
        if path.is_file() and compute_file_digest(path) == source["sha256"]:
            return ModelFile("reference", path), [levels[name] for name in names]
    problem = f"{reference} is not" if reference else f"neither in nor beside {folder} is"
    raise SettingsError(f"{problem} {source['file']}, which the levels were made from; name it with --reference")


def _load_task(collection: str, limit: int | None, seed: int) -> Task:
    """Load the judged queries of "INDEX=CORPUS[:SPLIT]", or a sample of `limit` of them. Raises SettingsError."""
    from querylift.index_tools.corpora.corpus_names import load_corpus_and_split
    from querylift.index_tools.evaluation.experiment import create_task

    index, equals_sign, corpus_name = collection.partition("=")
    if not equals_sign or not index or not corpus_name:
        raise SettingsError(f"--on is {collection!r}; write INDEX=CORPUS or INDEX=CORPUS:SPLIT")
    corpus, split = load_corpus_and_split(corpus_name)
    task = create_task(corpus, split, index)
    if limit is None or limit >= len(task.queries):
        return task
    sampled_ids = set(random.Random(seed).sample(sorted(task.queries), limit))
    return replace(
        task,
        queries={query_id: text for query_id, text in task.queries.items() if query_id in sampled_ids},
        qrels={query_id: grades for query_id, grades in task.qrels.items() if query_id in sampled_ids},
    )
