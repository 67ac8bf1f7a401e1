"""Options and small pieces that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from querylift.plugin.settings import Settings, check, load

engine_option = click.option(
    "--engine", help="URL of the search engine [default: the settings', http://127.0.0.1:9200]."
)
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="QUERYLIFT_CONFIG",
    help="Settings file, for accounts and limits.",
)


def settings_with(config: Path | None, **changes: object) -> Settings:
    """The settings of `config` and the environment with `changes`, checked anew; a change of None changes nothing."""
    given = {key: value for key, value in changes.items() if value is not None}
    values = load(config).model_dump()
    return check(values | given, source="options")


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; called with the count so far."""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit="", disable=not sys.stderr.isatty(), leave=False, ncols=80) as bar:
        yield lambda count: _advance(bar, count)


def _advance(bar: object, count: int) -> None:
    bar.update(count - bar.n)  # type: ignore[attr-defined]
