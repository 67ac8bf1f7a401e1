"""Prepared expansions by query: head queries written by hand, or any large model's output.

A table is JSON lines, plain or .gz: {"query": ..., "text": ...} or {"query": ..., "field": ..., "terms": {term: weight}}.
Other keys are allowed and ignored. Where a query stands twice, the first line counts.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import Expansion, clean_prose, clean_query, from_words
from querylift.plugin.generators.base import Ask


class TableGenerator:
    """Looks a query up, letter case and white space aside."""

    reads_index = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table: dict[str, Expansion] = {}
        self.identity = f"table:{path.name}"

    def __len__(self) -> int:
        return len(self._table)

    async def start(self) -> None:
        """Read the file. Raises SettingsError or DataError."""
        digest = hashlib.sha256()
        for number, row in rows(self._path):
            expansion = _expansion(row, self._path, number)
            if expansion is not None and self._table.setdefault(_key(row["query"]), expansion) is expansion:
                digest.update(json.dumps([row["query"], expansion.to_json()]).encode())
        self.identity = f"table:{digest.hexdigest()[:16]}"

    async def expand(self, ask: Ask) -> Expansion | None:
        """The prepared expansion, or None."""
        return self._table.get(_key(ask.text))

    async def close(self) -> None:
        """Nothing to release."""


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON-lines file, .gz or not; blank lines passed over. Raises SettingsError, DataError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _row(line, path, number)
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; name a file of JSON lines with query and text") from None
    except (OSError, EOFError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


def build(source: Path, *, where: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Table rows from a file of many models' output: the first row per query whose keys have the values of `where`.

    A key may lead inwards: `params.mode`.
    """
    seen: set[str] = set()
    for number, row in rows(source):
        if any(str(value_at(row, key)) != value for key, value in where.items()):
            continue
        expansion = _expansion(row, source, number)
        if expansion is not None and _key(row["query"]) not in seen:
            seen.add(_key(row["query"]))
            yield {"query": clean_query(row["query"]), "text": expansion.text}


def value_at(row: Any, key: str) -> Any:
    """The value at `key`, which may lead inwards (`params.mode`); None where there is none."""
    for part in key.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None
    return row


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise DataError(path, number, "this line is not JSON; write one object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get("query"), str):
        raise DataError(path, number, 'this line has no "query"; write {"query": ..., "text": ...}')
    return row


def _expansion(row: Mapping[str, Any], path: Path, number: int) -> Expansion | None:
    if isinstance(row.get("text"), str):
        return from_words(clean_prose(row["text"]))
    try:
        return Expansion.from_json(row)
    except ValueError as error:
        raise DataError(path, number, f"{error}") from None


def _key(query: str) -> str:
    return clean_query(query).casefold()
