"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from querylift.plugin.settings import Settings, load_settings

DEFAULT_SETTINGS_PATH = Path("querylift.toml")

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="QUERYLIFT_CONFIG",
    help="Settings file [default: querylift.toml in this folder, if it exists].",
)

concurrency_option = click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Expansions made at the same time [default: the model's slots plus its queue; 16 for other generators].",
)

generator_option = click.option(
    "--generator", help="Generator whose expansions are made [default: the one in the settings, if there is only one]."
)


def read_settings(config: Path | None) -> Settings:
    """Read the settings file `config`, or else querylift.toml in this folder, or else the defaults."""
    if config is None and DEFAULT_SETTINGS_PATH.exists():
        config = DEFAULT_SETTINGS_PATH
    return load_settings(config)
