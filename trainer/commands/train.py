"""`querylift train`: the group of the stages, each imported when it is called."""

from __future__ import annotations

import click

from querylift.plugin.commands.stage_group import Stages

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
    "expander": "the fast expander's matrix, from the index, judgments and the engine",
    "report": "the table: what every stage brought",
}
"""Name and what it makes, in the order of the chain; each is the command of that name in the module of that name."""


@click.command(cls=Stages, package="querylift.trainer.commands", stages=STAGES)
def train() -> None:
    """Turn an index, its queries and a teacher into a small expansion model.

    Every stage can be stopped and started again, and leaves a manifest of what it was made from.
    """
