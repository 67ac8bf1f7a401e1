"""The command `querylift`. Its sub-commands are entry points, which are imported when they are called."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import click

from querylift.plugin.commands.repeated_options import refuse_repeated_options
from querylift.plugin.errors import MissingExtra, QueryliftError
from querylift.plugin.telemetry import switch_off_telemetry

COMMANDS_ENTRY_POINT = "querylift.commands"
"""The entry point group in which every package registers its sub-commands."""
_EXTRA_OF_PACKAGE = {
    "querylift.index_tools": "index",
    "querylift.trainer": "train",
    "querylift.quantize": "quantize",
}


class EntryPointGroup(click.Group):
    """A command group whose sub-commands are the entry points of `COMMANDS_ENTRY_POINT`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(entry.name for entry in entry_points(group=COMMANDS_ENTRY_POINT))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entries = [entry for entry in entry_points(group=COMMANDS_ENTRY_POINT) if entry.name == cmd_name]
        return load_command(entries[0]) if entries else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, arguments = super().resolve_command(ctx, args)
        if command is not None:
            refuse_repeated_options(command, name or "", arguments, ctx)
        return name, command, arguments

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._get_short_help(ctx, name)) for name in self.list_commands(ctx)])

    def _get_short_help(self, ctx: click.Context, name: str) -> str:
        try:
            command = self.get_command(ctx, name)
        except QueryliftError as error:
            return str(error)
        return command.get_short_help_str(60) if command else ""


def load_command(entry: EntryPoint) -> click.Command:
    """Import a sub-command. Raises MissingExtra when its packages are not installed."""
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        package = ".".join(entry.module.split(".")[:2])
        if package not in _EXTRA_OF_PACKAGE:
            raise
        raise MissingExtra(error.name or entry.name, _EXTRA_OF_PACKAGE[package]) from error
    assert isinstance(command, click.Command)
    return command


@click.command(cls=EntryPointGroup)
@click.version_option(package_name="querylift", prog_name="querylift")
def querylift() -> None:
    """Add query expansion to the OpenSearch or Elasticsearch that you already run."""


def main() -> None:
    """Run the command. A QueryliftError becomes one sentence on stderr and its exit code."""
    switch_off_telemetry()
    try:
        querylift(standalone_mode=True)
    except QueryliftError as error:
        click.echo(f"querylift: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
