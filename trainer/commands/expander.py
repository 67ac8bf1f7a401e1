"""`querylift train expander`: the matrix of a fast expander, trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from querylift.index_tools.commands.options import config_option, engine_option, settings_with
from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.held_out import held_out_beside, held_out_option

if TYPE_CHECKING:
    from querylift.trainer.fast_expander.stages import Judged

_STAGES = ("index", "judged", "feedback")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@engine_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the trained expander.")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice(_STAGES),
    default=["index"],
    show_default=True,
    help="Repeatable, in this order.",
)
@click.option("--corpus", help="Corpus with judged queries, for the stages judged and feedback.")
@click.option("--split", help="Split of the corpus to train on [default: its only one].")
@click.option(
    "--candidates", multiple=True, type=click.Path(path_type=Path), help="A teacher's candidates; repeatable."
)
@click.option(
    "--training", type=click.Path(path_type=Path), help="TOML file with a table [expander], or a packaged one."
)
@click.option("--seed", type=click.IntRange(0), help="[default: the configuration's]")
@held_out_option
@config_option
def expander(
    folder: Path,
    engine: str | None,
    out: Path,
    stages: tuple[str, ...],
    corpus: str | None,
    split: str | None,
    candidates: tuple[Path, ...],
    training: Path | None,
    seed: int | None,
    held_out: tuple[str, ...],
    config: Path | None,
) -> None:
    """Train the expander in FOLDER, which `querylift expander build --form terms` made.

    A run that was stopped goes on after the last stage that ended.
    """
    from querylift.trainer.settings import load
    from querylift.trainer.student.models import check_installed

    check_installed()
    from querylift.index_tools.engine import Engine
    from querylift.trainer.fast_expander.stages import STAGES, Training
    from querylift.trainer.manifest import Manifest

    if list(stages) != [stage for stage in STAGES if stage in stages]:
        raise SettingsError(f"--stage is {', '.join(stages)}; give each once, in the order {', '.join(STAGES)}")
    how = load(training)
    chosen = how.seed if seed is None else seed
    judged = _judged(corpus, split, candidates, held_out) if corpus else None
    if judged is None and set(stages) & {"judged", "feedback"}:
        raise SettingsError(f"stage {stages[-1]} needs judged queries; name them with --corpus and --split")
    plugin = settings_with(config, engine=engine)
    asked = {"stages": stages, "corpus": corpus, "split": split, **how.expander.model_dump()}
    inputs = {"expander": folder, **{f"candidates {number}": path for number, path in enumerate(candidates)}}
    manifest = Manifest(
        out, stage="expander", inputs=inputs, settings=asked, seed=chosen, folder=True, vital=("*.onnx", "*.json")
    )
    if not manifest.done:
        with manifest.running() as results, Engine(plugin) as client:
            made = Training(folder, client, plugin, how.expander, seed=chosen, tell=click.echo)
            made.run([stage for stage in STAGES if stage in stages], out, judged)
            results["stages"] = list(stages)
    click.echo(f"{out}: serve it with --generator expander:{out}")


def _judged(corpus: str, split: str | None, files: tuple[Path, ...], held_out: tuple[str, ...]) -> Judged:
    from querylift.index_tools.corpora.loading import load
    from querylift.trainer.candidates import read
    from querylift.trainer.commands.arguments import check_split
    from querylift.trainer.fast_expander.stages import Judged
    from querylift.trainer.leaks import leaks, refuse
    from querylift.trainer.rewards.labels import labels_of

    loaded = load(corpus)
    check_split(loaded, split)
    name = split or loaded.splits()[0]
    queries = dict(loaded.queries(name))
    found = leaks(sorted(queries.items()), held_out_beside(held_out, loaded, name), corpus=loaded.name)
    refuse(found, remedy="leave them out with `querylift train split`, or name other splits with --held-out")
    return Judged(queries, labels_of(loaded, name), [row for path in files for row in read(path)])
