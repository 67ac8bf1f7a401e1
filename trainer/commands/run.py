"""`querylift train run`: run the whole pipeline of a configuration file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from querylift.plugin.commands.repeated_options import refuse_repeated_options
from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.trainer.pipeline import StageCall


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--seed", "seeds", type=click.IntRange(0), multiple=True, help="Seed to run with; repeatable [default: the file's]."
)
@click.option("--set", "overrides", metavar="NAME=VALUE", multiple=True, help="Set a variable of the file; repeatable.")
@click.option("--dry-run", is_flag=True, help="Print the commands and run nothing.")
def run(config: Path, seeds: tuple[int, ...], overrides: tuple[str, ...], dry_run: bool) -> None:
    """Run the steps of CONFIG, which is a TOML file or the name of a packaged configuration.

    Finished stages are not run again, so a run that was stopped goes on. Before the first stage, the command checks that the
    packages of all stages are installed, and that the engine has their indices.
    """
    from querylift.trainer import pipeline
    from querylift.trainer.commands.requirements import check_requirements
    from querylift.trainer.training_config import load_training_config

    training_config = load_training_config(config)
    if not training_config.step:
        raise SettingsError(f"{config} has no [[step]]; name a file that has, or run the stages one by one")
    calls = pipeline.build_stage_calls(
        training_config, path=config, seeds=seeds, overrides=dict(_parse_override(item) for item in overrides)
    )
    contexts = [_parse_call(call) for call in calls]
    if not dry_run:
        check_requirements(contexts)
    pipeline.run_stage_calls(calls, _skip_stage if dry_run else _run_stage, say=click.echo)


def _parse_call(call: StageCall) -> click.Context:
    """Return the parsed arguments. Raises SettingsError when the stage does not exist or would refuse them."""
    from querylift.trainer.commands.train import train

    with click.Context(train) as context:
        command = train.get_command(context, call.stage)
    if command is None:
        raise SettingsError(f"{call.stage!r} is not a stage; `querylift train --help` lists the stages")
    try:
        refuse_repeated_options(command, call.stage, call.arguments, context)
        return command.make_context(call.stage, list(call.arguments))
    except click.UsageError as error:
        raise SettingsError(f"a step of the pipeline cannot run: {call}: {error.format_message()}") from None


def _run_stage(stage: str, arguments: Sequence[str]) -> None:
    from querylift.trainer.commands.train import train

    train.main([stage, *arguments], prog_name="querylift train", standalone_mode=False)


def _skip_stage(stage: str, arguments: Sequence[str]) -> None:
    """Do nothing: a dry run only prints the commands."""


def _parse_override(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise SettingsError(f"--set is {item!r}; write NAME=VALUE")
    return name, value
