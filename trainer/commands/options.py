"""Options that several training commands share."""

from __future__ import annotations

from pathlib import Path

import click

training_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Training configuration: a TOML file, or the name of a packaged one [default: built-in values].",
)
seed_option = click.option("--seed", type=click.IntRange(0), help="Random seed [default: the configuration's].")
