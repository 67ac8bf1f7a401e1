"""`querylift quantize`: the group of the stages, each imported when it is called."""

from __future__ import annotations

import click

from querylift.plugin.commands.stage_group import Stages

STAGES = {
    "export": "a model or an adapter as a GGUF file",
    "merge": "a model and an adapter on it as one file",
    "make": "smaller files of a GGUF model, one for each type",
    "student": "the shipped student as one fast file",
    "gate": "the smallest of them that searches as well",
}
"""Name and what it makes, in the order of use; each is the command of that name in the module of that name."""


@click.command(cls=Stages, package="querylift.quantize.commands", stages=STAGES)
def quantize() -> None:
    """Make the GGUF files that are served, and accept them by measurement."""
