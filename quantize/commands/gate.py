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

from querylift.index_tools.commands.options import config_option, engine_option, progress, settings_with
from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.settings import Settings, switched_on

if TYPE_CHECKING:
    from querylift.index_tools.evaluation.experiment import Task
    from querylift.quantize.acceptance.gate import Level
    from querylift.quantize.acceptance.model_card import Found


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--on",
    "collections",
    multiple=True,
    required=True,
    metavar="INDEX=CORPUS[:SPLIT]",
    help="An index and the corpus whose judged queries are searched on it; repeatable.",
)
@click.option("--reference", type=click.Path(path_type=Path), help="GGUF file [default: the one FOLDER was made from].")
@click.option("--levels", help="Types to measure, with commas between [default: all of FOLDER].")
@click.option("--bound", default=0.5, show_default=True, help="Points of nDCG@10, of 100, that may be lost.")
@click.option("--limit", type=click.IntRange(min=2), help="Queries of each collection, drawn [default: all].")
@click.option("--seed", default=0, show_default=True, help="Of what --limit draws.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: the physical cores less one]")
@click.option("--weight", type=float, help="Weight of an expansion's word [default: the settings', 0.2].")
@click.option("--licence", help="A line for the model card, as its data and its base ask for.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@engine_option
@config_option
def gate(folder: Path, engine: str | None, config: Path | None, as_json: bool, **options: Any) -> None:
    """Search with every level in FOLDER, as `querylift quantize make` writes it, and accept the smallest that is as good.

    A level passes where it is proven, by a one-sided paired test at 95%, to lose less than the bound against the file that all
    were made from. Writes FOLDER/README.md, the model card, and FOLDER/gate.json; exit code 1 where no level passes.
    """
    try:
        from querylift.quantize.acceptance import model_card
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "gguf", "quantize") from error

    reference, levels = _files(folder, options["reference"], options["levels"])
    tasks = [_task(named, options["limit"], options["seed"]) for named in options["collections"]]
    found = asyncio.run(_found(reference, levels, tasks, settings_with(config, engine=engine), options))
    written = model_card.write(found, folder, about=_about(reference.path, options["licence"]))
    if as_json:
        click.echo(json.dumps(model_card.as_json(found), indent=2))
    else:
        click.echo(model_card.render(found) + "\n\n" + model_card.sentence(found) + f"\ncard: {written}")
    if found.chosen is None:
        sys.exit(1)


async def _found(
    reference: Level, levels: Sequence[Level], tasks: Sequence[Task], settings: Settings, options: dict[str, Any]
) -> Found:
    from querylift.index_tools.engine import Engine
    from querylift.index_tools.evaluation.experiment import System, check_found
    from querylift.index_tools.searching import search_offline
    from querylift.plugin.generators.llama.model_file import default_threads
    from querylift.quantize.acceptance.gate import judge, measure, ndcg_of, smallest
    from querylift.quantize.acceptance.model_card import Found

    threads = options["threads"] or default_threads()
    table = {} if options["weight"] is None else {"weight": options["weight"]}
    given: dict[str, Any] = {"settings": settings, "table": table, "threads": threads}
    with Engine(settings) as engine:
        plain: dict[str, float] = {}
        for task in tasks:
            searched = search_offline(engine, task.queries, index=task.index)
            check_found(task, System("no expansion", searched))
            plain |= ndcg_of(task, searched)
        measured = []
        for level in [reference, *levels]:
            with progress(level.name, sum(len(task.queries) for task in tasks)) as advance:
                measured.append(await measure(level, tasks, engine=engine, progress=advance, **given))
        verdicts = judge(measured[0], measured[1:], bound=options["bound"] / 100)
        rules = switched_on(settings, tasks[0].index, **table).index[tasks[0].index]
        return Found(
            plain=plain,
            reference=measured[0],
            verdicts=verdicts,
            chosen=smallest(verdicts),
            tasks=tasks,
            engine=str(engine.info()),
            bound=options["bound"] / 100,
            rules=f"mode {rules.mode}, weight {rules.weight:g}",
            threads=threads,
        )


def _files(folder: Path, reference: Path | None, wanted: str | None) -> tuple[Level, list[Level]]:
    from querylift.plugin.generators.llama.model_file import file_digest
    from querylift.quantize.acceptance.gate import Level
    from querylift.quantize.levels.make_levels import read_manifest

    manifest = read_manifest(folder)
    made = {name: Level(name, folder / entry["file"]) for name, entry in manifest["levels"].items()}
    names = [name.strip().upper() for name in wanted.split(",")] if wanted else list(made)
    unknown = [name for name in names if name not in made]
    if unknown or not names:
        problem = f"holds no level {unknown[0]}" if unknown else "holds no level"
        raise SettingsError(f"{folder} {problem}, only {', '.join(made) or 'a manifest'}; make it with `quantize make`")
    source = manifest["source"]
    places = [reference] if reference else [folder / source["file"], folder.parent / source["file"]]
    found = next((place for place in places if place.is_file() and file_digest(place) == source["sha256"]), None)
    if found is None:
        problem = f"{reference} is not" if reference else f"neither in nor beside {folder} is"
        raise SettingsError(f"{problem} {source['file']}, which the levels were made from; name it with --reference")
    return Level("reference", found), [made[name] for name in names]


def _task(named: str, limit: int | None, seed: int) -> Task:
    from querylift.index_tools.corpora.loading import load_split
    from querylift.index_tools.evaluation.experiment import task_of

    index, equals, place = named.partition("=")
    if not equals or not index or not place:
        raise SettingsError(f"--on is {named!r}; write INDEX=CORPUS or INDEX=CORPUS:SPLIT")
    corpus, split = load_split(place)
    task = task_of(corpus, split, index)
    if limit is None or limit >= len(task.queries):
        return task
    kept = set(random.Random(seed).sample(sorted(task.queries), limit))
    return replace(
        task,
        queries={q: text for q, text in task.queries.items() if q in kept},
        qrels={q: grades for q, grades in task.qrels.items() if q in kept},
    )


def _about(reference: Path, licence: str | None) -> dict[str, str]:
    """What the model's own file says of itself."""
    from querylift.quantize.acceptance.model_card import told_by

    return told_by(reference) | ({"Licence": licence} if licence else {})
