"""`querylift train`: the group of the stages, each imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

STAGES = {
    "split": "judged queries in two: to train on, and to choose by",
    "teach": "candidates from a teacher, a file or the judged documents",
    "score": "what each candidate changes on your engine",
    "pairs": "better and worse expansions of the same query",
    "sft": "a student learns to write candidates",
    "dpo": "a student learns what your engine prefers",
    "sample": "what a student writes itself",
    "merge": "an adapter and its base as one folder",
    "run": "the whole chain, from one file of settings",
    "report": "the table: what every stage brought",
}
"""Name and what it makes, in the order of the chain; each is the command of that name in the module of that name."""


class _Stages(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(STAGES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in STAGES:
            return None
        command = getattr(import_module(f"trainer.commands.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Stages"):
            formatter.write_dl(list(STAGES.items()))


@click.command(cls=_Stages)
def train() -> None:
    """Turn an index, its queries and a teacher into a small expansion model.

    Every stage can be stopped and started again, and leaves a manifest of what it was made from.
    """
