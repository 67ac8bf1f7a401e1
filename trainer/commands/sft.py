"""`querylift train sft`: the student learns to write like its teacher."""

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
@click.argument("rows", nargs=-1, required=True, type=click.Path(path_type=Path))
@training_config_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the adapter, or for the whole model when lora.rank is 0.",
)
@seed_option
@click.option(
    "--model",
    "base",
    help="Base to train: a folder, a FILE.gguf, or the name of a packaged model [default: the configuration's].",
)
@held_out_option
@held_out_by_option
@evaluation_options
def sft(
    rows: tuple[Path, ...],
    config: Path | None,
    out: Path,
    seed: int | None,
    base: str | None,
    held_out: tuple[str, ...],
    held_out_by: HeldOutBy | None,
    evaluate_on: str | None,
    **place: Any,
) -> None:
    """Fine-tune a base model on the candidates in ROWS.

    The model learns to answer the served prompt with the candidate's passage. A run that was stopped goes on from its
    last checkpoint. On several GPUs: accelerate launch --multi_gpu -m querylift train sft ...
    """
    from querylift.trainer.student.libraries import check_training_packages, silence_libraries
    from querylift.trainer.training_config import load_training_config

    check_training_packages()
    silence_libraries()
    from querylift.trainer.student import shared_training
    from querylift.trainer.student.sft import train_on_passages
    from querylift.trainer.student.training_result import format_result

    training_config = load_training_config(config)
    training_config = apply_held_out_options(training_config, held_out, held_out_by)
    raise_on_held_out_rows(
        rows, held_out, training_config.held_out, by=training_config.held_out_by, evaluate_on=evaluate_on
    )
    evaluator = open_evaluator(training_config, held_out, evaluate_on=evaluate_on, **place)
    say = shared_training.silence_other_processes(click.echo)
    result = train_on_passages(rows, training_config, out=out, base=base, seed=seed, evaluator=evaluator, say=say)
    say(format_result(result))
