"""`querylift train dpo`: the student learns which passages helped their queries more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from querylift.trainer.commands.held_out import (
    apply_held_out_options,
    held_out_by_option,
    held_out_option,
    raise_on_held_out_rows,
)
from querylift.trainer.commands.options import seed_option, training_config_option
from querylift.trainer.commands.training_evaluation import evaluation_options, open_evaluator

if TYPE_CHECKING:
    from querylift.trainer.training_config import HeldOutBy


@click.command()
@click.argument("pairs", nargs=-1, required=True, type=click.Path(path_type=Path))
@training_config_option
@click.option("--model", required=True, help="Student to train: the output of `sft`, or any other model.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the adapter, or for the whole model when lora.rank is 0.",
)
@seed_option
@held_out_option
@held_out_by_option
@evaluation_options
def dpo(
    pairs: tuple[Path, ...],
    config: Path | None,
    model: str,
    out: Path,
    seed: int | None,
    held_out: tuple[str, ...],
    held_out_by: HeldOutBy | None,
    evaluate_on: str | None,
    **place: Any,
) -> None:
    """Train a student on the pairs of passages in PAIRS.

    It learns to write passages like the chosen ones, and unlike the rejected ones. Keep MODEL where it is until
    `merge` has made one model of it and the new adapter. A run that was stopped goes on from its last checkpoint.
    """
    from querylift.trainer.student.libraries import check_training_packages, silence_libraries
    from querylift.trainer.training_config import load_training_config

    check_training_packages()
    silence_libraries()
    from querylift.trainer.student import shared_training
    from querylift.trainer.student.dpo import train_on_pairs
    from querylift.trainer.student.training_result import format_result

    training_config = load_training_config(config)
    training_config = apply_held_out_options(training_config, held_out, held_out_by)
    raise_on_held_out_rows(
        pairs, held_out, training_config.held_out, by=training_config.held_out_by, evaluate_on=evaluate_on
    )
    evaluator = open_evaluator(training_config, held_out, evaluate_on=evaluate_on, **place)
    say = shared_training.silence_other_processes(click.echo)
    result = train_on_pairs(pairs, training_config, model=model, out=out, seed=seed, evaluator=evaluator, say=say)
    say(format_result(result))
