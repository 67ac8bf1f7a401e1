"""Candidate expansions: what a teacher or the student wrote for a query, one JSON object a line, only ever appended.

A line is {"query_id", "query", "method", "params", "model", "text"}, the shape in which published expansions come.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from querylift.index_tools.corpora.trec_files import read_jsonl
from querylift.plugin.errors import DataError, SettingsError


@dataclass(frozen=True, slots=True)
class Candidate:
    """One expansion of one query. `method` and `params` say how it was asked for, `params["sample"]` which of several.

    `text` is as it was written; what is served of it is up to `querylift.plugin.expansion`.
    """

    query_id: str
    query: str
    method: str
    model: str
    text: str
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for two candidates that answer the same request, whatever was answered."""
        asked = json.dumps([self.query_id, self.query, self.method, self.model, dict(self.params)], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:24]

    def to_json(self) -> dict[str, Any]:
        """The line that `read` takes back."""
        return {
            "query_id": self.query_id,
            "query": self.query,
            "method": self.method,
            "params": dict(self.params),
            "model": self.model,
            "text": self.text,
        }


def read(path: Path) -> Iterator[Candidate]:
    """The candidates of a file, `.gz` or not. Raises DataError with path and line, SettingsError where there is no file."""
    for number, row in read_jsonl(path):
        yield _candidate(row, path, number)


def _candidate(row: Mapping[str, Any], path: Path, number: int) -> Candidate:
    texts = {name: row.get(name) for name in ("query_id", "query", "text")}
    for name, value in texts.items():
        if not isinstance(value, str) or (name != "text" and not value.strip()):
            raise DataError(path, number, f"{name!r} is {value!r}; write it as a text")
    params = row.get("params") or {}
    if not isinstance(params, Mapping):
        raise DataError(path, number, f"'params' is {params!r}; write an object, or leave it out")
    return Candidate(
        query_id=str(texts["query_id"]),
        query=str(texts["query"]),
        method=str(row.get("method") or "imported"),
        model=str(row.get("model") or "unknown"),
        text=str(texts["text"]),
        params=dict(params),
    )


class Appender:
    """Appends objects to a JSONL file, each line on disk before the next. What a kill tore off the last line is cut away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("a+b")
        except OSError as error:
            raise SettingsError(f"{path} cannot be written ({error.strerror}); name another file") from None
        self._cut_torn_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()

    def _cut_torn_line(self) -> None:
        whole = end = self._stream.seek(0, os.SEEK_END)
        while whole > 0:
            start = max(0, whole - 65536)
            self._stream.seek(start)
            newline = self._stream.read(whole - start).rfind(b"\n")
            whole = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if whole < end:
            self._stream.truncate(whole)
