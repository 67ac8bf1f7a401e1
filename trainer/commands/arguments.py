"""Parse NAME=PLACE, KEY=VALUE and --split on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.index_tools.corpora.corpus import Corpus


def split_prefix(argument: str) -> tuple[str, str]:
    """Return the prefix for ids and the place: "fiqa=FILE" gives ("fiqa:", "FILE").

    There is no prefix when the argument has no "=", or is itself the name of a file.
    """
    name, equals, place = argument.partition("=")
    return (f"{name}:", place) if equals and name and not Path(argument).exists() else ("", argument)


def parse_conditions(arguments: Sequence[str]) -> dict[str, set[str]]:
    """Return the accepted values of every key of "KEY=VALUE" arguments. A repeated key accepts each of its values."""
    conditions: dict[str, set[str]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise SettingsError(f"--where is {argument!r}; write KEY=VALUE")
        conditions.setdefault(key, set()).add(value)
    return conditions


def check_split(corpus: Corpus, split: str | None) -> None:
    """Raise SettingsError when the corpus has no queries, or when it has several splits and `split` is None.

    A split that the corpus lacks is reported by the corpus itself.
    """
    names = corpus.split_names
    if split is None and len(names) > 1:
        raise SettingsError(f"{corpus.name!r} has several splits: {', '.join(names)}; name one with --split NAME")
    if not names:
        raise SettingsError(f"{corpus.name!r} has no queries; name a corpus that has some")
