"""`querylift train sft`: the student learns to write what the teacher wrote."""

from __future__ import annotations

from pathlib import Path

import click

from querylift.trainer.commands.held_out import held_out_option, refuse_held_out


@click.command()
@click.argument("rows", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help="TOML file, or the name of a packaged one.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the adapter, or the whole model."
)
@click.option("--seed", type=click.IntRange(0), help="[default: the configuration's]")
@click.option("--model", "base", help="Base to train: a folder, a FILE.gguf, a name [default: the configuration's].")
@held_out_option
def sft(
    rows: tuple[Path, ...],
    config: Path | None,
    out: Path,
    seed: int | None,
    base: str | None,
    held_out: tuple[str, ...],
) -> None:
    """Fine-tune a base model on candidates: the prompt that is served, then the passage.

    A run that was killed goes on from its last checkpoint. On several GPUs:
    accelerate launch --multi_gpu -m querylift train sft ...
    """
    from querylift.trainer.settings import load
    from querylift.trainer.student.models import check_installed

    check_installed()
    from querylift.trainer.student import shared_training
    from querylift.trainer.student.sft import train

    settings = load(config)
    refuse_held_out(rows, held_out, settings.held_out)
    say = shared_training.for_one(click.echo)
    trained = train(rows, settings, out=out, base=base, seed=seed, say=say)
    say(shared_training.closing(trained))
