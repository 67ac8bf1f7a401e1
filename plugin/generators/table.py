"""The generator `table`: expansions that were prepared by query, by hand or by a large model.

A table is a file of JSON lines, plain or .gz. A line is {"query": ..., "text": ...} or
{"query": ..., "field": ..., "terms": {term: weight}}. Terms of several fields are in "groups", a list of objects with
"fields" and "terms". All may have "documents": {_id: weight}, and a line may have nothing
else. Other keys are ignored. The first line of a query counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from querylift.plugin.errors import DataError
from querylift.plugin.expansion import (
    Expansion,
    clean_prose,
    clean_query,
    expansion_from_text,
    fold_query,
    read_documents,
)
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.refusals import is_refusal
from querylift.plugin.text_files import parse_json_object, read_lines

_log = logging.getLogger("querylift")


class TableGenerator:
    """Looks each query up in a file. Letter case, white space and the Unicode form do not matter."""

    reads_index = False
    uses_account = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._expansions: dict[str, Expansion] = {}
        self.identity = f"table:{path.name}"

    def __len__(self) -> int:
        return len(self._expansions)

    async def start(self) -> None:
        """Read the file. Raises SettingsError or DataError."""
        digest = hashlib.sha256()
        left_out_count = 0
        for number, row in read_table_rows(self._path):
            expansion = _parse_expansion(row, self._path, number)
            if expansion is None:
                left_out_count += 1
                continue
            key = fold_query(row["query"])
            if self._expansions.setdefault(key, expansion) is expansion:
                digest.update(json.dumps([row["query"], expansion.to_json()]).encode())
        self.identity = f"table:{digest.hexdigest()[:16]}"
        if left_out_count:
            _log.warning(
                "%s: %d lines have no words or hold a model's refusal, and are left out", self._path, left_out_count
            )

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Return the prepared expansion, or None when the table has none for the query."""
        return self._expansions.get(fold_query(request.text))

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""


def read_table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of each line of a JSON-lines file, plain or gzipped. Raises SettingsError, DataError.

    Blank lines are skipped.
    """
    for number, line in read_lines(path):
        row = parse_json_object(line, path, number)
        if not isinstance(row.get("query"), str):
            raise DataError(path, number, 'this line has no "query"; write {"query": ..., "text": ...}')
        yield number, row


def build_table_rows(source: Path, *, where: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield table rows from a file of many models' output: the first matching row of each query.

    A row matches when the values at its keys are those of `where`. A key may lead into nested objects: `params.mode`.
    """
    used_queries: set[str] = set()
    for number, row in read_table_rows(source):
        if any(str(get_nested_value(row, key)) != value for key, value in where.items()):
            continue
        expansion = _parse_expansion(row, source, number)
        key = fold_query(row["query"])
        if expansion is not None and key not in used_queries:
            used_queries.add(key)
            yield {"query": clean_query(row["query"]), **expansion.to_json()}


def get_nested_value(row: Any, key: str) -> Any:
    """Return the value at `key`, or None. The key may lead into nested objects: `params.mode`."""
    for part in key.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None
    return row


def _parse_expansion(row: Mapping[str, Any], path: Path, number: int) -> Expansion | None:
    """Return the row's expansion, or None when its text has no words or is a model's refusal. Raises DataError."""
    try:
        return read_table_expansion(row)
    except ValueError as error:
        raise DataError(path, number, f"{error}") from None


def read_table_expansion(row: Mapping[str, Any]) -> Expansion | None:
    """Return the expansion of a table row, or None when its text has no words or is a model's refusal. Raises ValueError."""
    if not isinstance(row.get("text"), str):
        return Expansion.from_json(row)
    prose = clean_prose(row["text"])
    expansion = None if is_refusal(prose) else expansion_from_text(prose)
    documents = read_documents(row)
    if expansion is None:
        return Expansion(documents=documents) if documents else None
    return replace(expansion, documents=documents)
