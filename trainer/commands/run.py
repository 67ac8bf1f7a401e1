"""`querylift train run`: the whole chain, from one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.trainer.pipeline import Call


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--seed", "seeds", type=click.IntRange(0), multiple=True, help="Repeatable [default: the file's].")
@click.option("--set", "given", metavar="NAME=VALUE", multiple=True, help="A variable of the file; repeatable.")
@click.option("--dry-run", is_flag=True, help="Print the commands only.")
def run(config: Path, seeds: tuple[int, ...], given: tuple[str, ...], dry_run: bool) -> None:
    """Run the steps of CONFIG, a file or the name of a packaged one, and go on where an earlier run was stopped."""
    from querylift.trainer import pipeline
    from querylift.trainer.settings import load

    settings = load(config)
    if not settings.step:
        raise SettingsError(f"{config} has no [[step]]; name a file that has, or run the stages one by one")
    made = pipeline.calls(settings, config=config, seeds=seeds, given=dict(map(_pair, given)))
    for call in made:
        _check(call)
    pipeline.run(made, _print_nothing if dry_run else _stage, say=click.echo)


def _check(call: Call) -> None:
    """Raise SettingsError where the stage would not take its arguments, before any stage has run."""
    from querylift.trainer.commands.train import train

    with click.Context(train) as context:
        command = train.get_command(context, call.stage)
    if command is None:
        raise SettingsError(f"{call.stage!r} is no stage; querylift train --help lists them")
    try:
        command.make_context(call.stage, list(call.arguments))
    except click.UsageError as error:
        raise SettingsError(f"a step of the chain cannot run: {call}: {error.format_message()}") from None


def _stage(name: str, arguments: Sequence[str]) -> None:
    from querylift.trainer.commands.train import train

    train.main([name, *arguments], prog_name="querylift train", standalone_mode=False)


def _print_nothing(name: str, arguments: Sequence[str]) -> None:
    """What a dry run does at each step."""


def _pair(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise SettingsError(f"--set is {item!r}; write NAME=VALUE")
    return name, value
