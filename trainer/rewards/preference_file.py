"""Reads what `querylift train pairs` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from querylift.index_tools.corpora.trec_files import read_jsonl
from querylift.plugin.errors import DataError


class Preference(NamedTuple):
    """Of two passages for a query, the one that served it better and the other one."""

    query_id: str
    query: str
    chosen: str
    rejected: str


def read(path: Path) -> Iterator[Preference]:
    """The pairs of a JSONL file, `.gz` or not. Raises DataError with path and line, SettingsError where there is no file."""
    for number, row in read_jsonl(path):
        values = [row.get(name) for name in Preference._fields]
        for name, value in zip(Preference._fields, values, strict=True):
            if not isinstance(value, str) or (name in ("query_id", "query") and not value.strip()):
                raise DataError(path, number, f"{name!r} is {value!r}; write it as a text")
        yield Preference(*map(str, values))
