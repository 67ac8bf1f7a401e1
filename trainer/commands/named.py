"""NAME=PLACE on the command line: sources whose query ids are told apart by a name."""

from __future__ import annotations

from pathlib import Path


def prefixed(item: str) -> tuple[str, str]:
    """(prefix of the ids, place): "fiqa=FILE" gives "fiqa:" and FILE; a file whose own name has a = is taken as it is."""
    name, equals, place = item.partition("=")
    return (f"{name}:", place) if equals and name and not Path(item).exists() else ("", item)
