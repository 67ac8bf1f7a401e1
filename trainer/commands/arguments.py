"""NAME=PLACE and KEY=VALUE on the command line, and the split that --split names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.plugin.errors import SettingsError

if TYPE_CHECKING:
    from querylift.index_tools.corpora.loading import Corpus


def prefixed(item: str) -> tuple[str, str]:
    """(prefix of the ids, place): "fiqa=FILE" gives "fiqa:" and FILE; a file whose own name has a = is taken as it is."""
    name, equals, place = item.partition("=")
    return (f"{name}:", place) if equals and name and not Path(item).exists() else ("", item)


def where_of(items: Sequence[str]) -> dict[str, set[str]]:
    """The values of every key of "KEY=VALUE" items; a key twice has either."""
    where: dict[str, set[str]] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise SettingsError(f"--where is {item!r}; write KEY=VALUE")
        where.setdefault(key, set()).add(value)
    return where


def check_split(corpus: Corpus, split: str | None) -> None:
    """Raise SettingsError where no split is given and `corpus` has several; one that it lacks is named by the corpus."""
    names = corpus.splits()
    if split is None and len(names) > 1:
        raise SettingsError(f"{corpus.name!r} has several splits: {', '.join(names)}; say which with --split NAME")
    if not names:
        raise SettingsError(f"{corpus.name!r} has no questions; name a corpus that has")
