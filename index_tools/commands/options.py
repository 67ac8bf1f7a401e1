"""Options and helpers that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from querylift.plugin.commands.options import config_option, read_settings
from querylift.plugin.settings import Settings, parse_settings

__all__ = ["config_option", "engine_option", "load_settings_with_options", "show_progress"]

engine_option = click.option(
    "--engine", help="URL of the search engine [default: from the settings, else http://127.0.0.1:9200]."
)


def load_settings_with_options(config: Path | None, **changes: object) -> Settings:
    """Load the settings as `read_settings` does, replace some of them by `changes`, and check the result.

    A change of None changes nothing.
    """
    replacements = {key: value for key, value in changes.items() if value is not None}
    values = read_settings(config).model_dump()
    return parse_settings(values | replacements, source="options")


@contextmanager
def show_progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar during the block if standard error is a terminal. Give a function that takes the count so far."""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="", disable=not sys.stderr.isatty(), leave=False, ncols=80) as bar:

        def show_count(count: int) -> None:
            bar.update(count - bar.n)

        yield show_count
