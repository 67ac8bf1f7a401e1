"""`querylift train card`: write the card of a student again, with what was measured."""

from __future__ import annotations

from pathlib import Path

import click

from querylift.plugin.errors import SettingsError
from querylift.trainer.commands.options import training_config_option


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="results.json of `querylift train report --out`, whose tables the card shows [default: none].",
)
@training_config_option
def card(folder: Path, results: Path | None, config: Path | None) -> None:
    """Write README.md into FOLDER, which `sft`, `dpo`, `grpo` or `merge` wrote.

    Each of these stages writes the card already. This command adds what was measured, and the licences that [card] of the
    configuration states.
    """
    from querylift.trainer.cards.card import write_card
    from querylift.trainer.cards.lineage import CARD_STAGES
    from querylift.trainer.manifest import CARD_NAME
    from querylift.trainer.student.libraries import check_training_packages
    from querylift.trainer.student.model_bases import read_json_object
    from querylift.trainer.training_config import load_training_config

    check_training_packages()
    measured = None
    if results is not None:
        measured = read_json_object(results)
        if not {"collections", "engine", "date"} <= measured.keys():
            raise SettingsError(f"{results} is no results.json of `querylift train report`; name one with --results")
    if not write_card(folder, load_training_config(config).card, results=measured):
        raise SettingsError(
            f"{folder} is no finished output of {', '.join(CARD_STAGES)}; name a folder that one of them wrote"
        )
    click.echo(f"{folder / CARD_NAME} is written")
