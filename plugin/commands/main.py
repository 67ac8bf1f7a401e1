"""The command `querylift`. Each package registers its sub-commands as entry points, imported when they are called."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import click

from querylift.plugin.errors import MissingExtra, QueryliftError

GROUP = "querylift.commands"
_EXTRAS = {"index_tools": "index", "trainer": "train", "quantize": "quantize"}


class Commands(click.Group):
    """A group whose sub-commands are the entry points of `GROUP`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(entry.name for entry in entry_points(group=GROUP))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = [entry for entry in entry_points(group=GROUP) if entry.name == cmd_name]
        return _load(found[0]) if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._help(ctx, name)) for name in self.list_commands(ctx)])

    def _help(self, ctx: click.Context, name: str) -> str:
        try:
            command = self.get_command(ctx, name)
        except QueryliftError as error:
            return str(error)
        return command.get_short_help_str(60) if command else ""


def _load(entry: EntryPoint) -> click.Command:
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(entry.module.split(".")[0], "serve")
        raise MissingExtra(error.name or entry.name, extra) from error
    assert isinstance(command, click.Command)
    return command


@click.command(cls=Commands)
@click.version_option(package_name="querylift", prog_name="querylift")
def querylift() -> None:
    """Query expansion in front of the OpenSearch or Elasticsearch that you already run."""


def main() -> None:
    """Run the command; a QueryliftError becomes one sentence on stderr and its exit code."""
    try:
        querylift(standalone_mode=True)
    except QueryliftError as error:
        click.echo(f"querylift: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
