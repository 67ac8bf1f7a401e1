"""`querylift judge`: the group of the commands of the relevance judge."""

from __future__ import annotations

import click

from querylift.plugin.commands.stage_group import StageGroup

STAGES = {
    "annotate": "Let a large model grade pairs of your index, with reasons.",
    "convert": "Make annotations of grades that were made elsewhere.",
    "adapt": "Adapt a local large model to your domain.",
    "train": "Train a small judge on annotations.",
    "export": "Make the files that are served of a trained judge.",
    "qrels": "Grade the first documents of several systems.",
    "sample": "Write a sheet of pairs for a person to grade.",
    "check": "Compare a judge with a sheet that a person graded.",
}
"""The name and the purpose of each command, in the order of use."""


@click.command(cls=StageGroup, package="querylift.trainer.commands.judge", stages=STAGES)
def judge() -> None:
    """Grade documents where no person did.

    A large model annotates some pairs of a query and a document. A small judge learns from them, and grades the rest.
    """
