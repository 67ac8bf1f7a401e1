"""`querylift train run`: run the whole pipeline of a configuration file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from querylift.plugin.commands.repeated_options import refuse_repeated_options
from querylift.plugin.errors import SettingsError
from querylift.trainer.pipeline import NAMED_VARIABLES

if TYPE_CHECKING:
    from querylift.trainer.pipeline import StageCall


_Command = TypeVar("_Command", bound=Callable[..., object])
_VARIABLE_HELP = {
    "corpus": "Corpus with the judged queries.",
    "index": "Index that holds the documents.",
    "engine": "URL of the search engine.",
    "endpoint": "URL of a teacher's OpenAI-compatible API, up to and including /v1.",
    "model": "Name of the teacher's model.",
    "work": "Folder for all outputs.",
}


def _add_variable_options(command: _Command) -> _Command:
    """Add an option for each variable that has a name of its own."""
    for name in reversed(NAMED_VARIABLES):
        command = click.option(f"--{name}", help=_VARIABLE_HELP[name])(command)
    return command


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--seed", "seeds", type=click.IntRange(0), multiple=True, help="Seed to run with; repeatable [default: the file's]."
)
@_add_variable_options
@click.option("--set", "overrides", metavar="NAME=VALUE", multiple=True, help="Set a variable of the file; repeatable.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the commands, and run nothing.")
def run(
    config: Path, seeds: tuple[int, ...], overrides: tuple[str, ...], dry_run: bool, **variables: str | None
) -> None:
    """Run the steps of CONFIG, which is a TOML file or the name of a packaged configuration.

    The plan is printed first: every stage, its output, and whether it is done. Finished stages are not run again, so a run
    that was stopped goes on. Before the first stage, the command checks that the packages of all stages are installed, and
    that the engine has their indices.

    The options from --corpus to --work set the variables of these names in CONFIG, for --set.
    """
    from querylift.trainer import pipeline
    from querylift.trainer.commands.requirements import check_requirements
    from querylift.trainer.student.reporters import check_reporters
    from querylift.trainer.training_config import load_training_config

    training_config = load_training_config(config)
    if not training_config.step:
        raise SettingsError(f"{config} has no [[step]]; name a file that has, or run the stages one by one")
    calls = pipeline.build_stage_calls(
        training_config, path=config, seeds=seeds, overrides=_collect_overrides(variables, overrides)
    )
    contexts = [_parse_call(call) for call in calls]
    outputs = [context.params.get("out") for context in contexts]
    if not dry_run:
        check_requirements(contexts)
        check_reporters(training_config.report_to)
    click.echo(f"plan of {config}:")
    click.echo("\n".join(pipeline.list_planned_stages(calls, outputs)))
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


def _collect_overrides(options: Mapping[str, str | None], overrides: Sequence[str]) -> dict[str, str]:
    """Return the variables of the options and of --set. Raises SettingsError when both give one."""
    values = dict(_parse_override(item) for item in overrides)
    for name, value in options.items():
        if value is not None and values.setdefault(name, value) != value:
            raise SettingsError(f"--{name} is {value!r} and --set {name} is {values[name]!r}; give one of the two")
    return values


def _parse_override(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise SettingsError(f"--set is {item!r}; write NAME=VALUE")
    return name, value
