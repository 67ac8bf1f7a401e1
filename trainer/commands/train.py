"""`querylift train`: the group of the training stages."""

from __future__ import annotations

import click

from querylift.plugin.commands.stage_group import StageGroup

STAGES = {
    "split": "Split judged queries in two: to train on, and to choose settings on.",
    "teach": "Collect candidates from a teacher, files or relevant documents.",
    "sft": "Train a student to write like the teacher.",
    "sample": "Let a student write passages.",
    "score": "Measure what each candidate gains on your engine.",
    "pairs": "Pair better and worse passages of the same query.",
    "dpo": "Train a student to write what your engine ranks better.",
    "grpo": "Train a student by your engine's rewards, instead of sample to dpo.",
    "merge": "Make one model of an adapter and its base.",
    "run": "Run all stages of a configuration file.",
    "report": "Measure what every stage gained.",
    "card": "Write the card of a student, with what was measured.",
    "expander": "Train the matrix of a fast expander.",
}
"""The name and the purpose of each stage, in the order of the pipeline, then the others. Module NAME holds the command NAME."""


@click.command(cls=StageGroup, package="querylift.trainer.commands", stages=STAGES)
def train() -> None:
    """Train a small language model to write expansions.

    Every stage can be stopped and started again. Each writes a manifest, which records what its output was made from.
    """
