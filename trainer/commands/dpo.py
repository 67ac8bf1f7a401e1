"""`querylift train dpo`: the student learns which passages served their queries better."""

from __future__ import annotations

from pathlib import Path

import click

from querylift.trainer.commands.held_out import held_out_option, refuse_held_out


@click.command()
@click.argument("pairs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help="TOML file, or the name of a packaged one.")
@click.option("--model", required=True, help="Student to train, and the reference: what `sft` wrote, or any model.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the adapter, or the whole model."
)
@click.option("--seed", type=click.IntRange(0), help="[default: the configuration's]")
@held_out_option
def dpo(
    pairs: tuple[Path, ...], config: Path | None, model: str, out: Path, seed: int | None, held_out: tuple[str, ...]
) -> None:
    """Train a student on pairs of passages: more of what served a query, less of what did not.

    The new adapter lies on top of MODEL, which has to stay where it is until the two are merged. A run that was killed
    goes on from its last checkpoint.
    """
    from querylift.trainer.settings import load
    from querylift.trainer.student.models import check_installed

    check_installed()
    from querylift.trainer.student import shared_training
    from querylift.trainer.student.dpo import train

    settings = load(config)
    refuse_held_out(pairs, held_out, settings.held_out)
    say = shared_training.for_one(click.echo)
    trained = train(pairs, settings, model=model, out=out, seed=seed, say=say)
    say(shared_training.closing(trained))
