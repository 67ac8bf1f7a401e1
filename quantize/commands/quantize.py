"""`querylift quantize`: the group of the quantising commands. Each is imported when it is called."""

from __future__ import annotations

import click

from querylift.plugin.commands.stage_group import StageGroup

STAGES = {
    "export": "write a model or an adapter as a GGUF file",
    "merge": "merge an adapter into a GGUF model",
    "make": "make smaller files of a GGUF model, one for each type",
    "student": "make one fast file of the shipped student",
    "gate": "find the smallest file that searches as well as the full one",
}
"""Each command's name and description, in the order of use. Command NAME is the function NAME of the module NAME."""


@click.command(cls=StageGroup, package="querylift.quantize.commands", stages=STAGES)
def quantize() -> None:
    """Make the GGUF files that the proxy serves.

    Each smaller file is measured on an engine, and accepted where it searches as well as the full one.
    """
