"""The queries of a log, distinct, the most frequent first."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import clean_query

_COUNT = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class QueryLog:
    """How many queries a file holds, and the distinct ones as first written, the most frequent first."""

    read: int
    texts: tuple[str, ...]

    def __repr__(self) -> str:
        return f"QueryLog({self.read} queries, {len(self.texts)} distinct)"


def read_queries(path: Path) -> QueryLog:
    """The queries of a file, plain or gzip, "-" for standard input; blank ones are passed over.

    A line is a query; a query, a tab and how often it was asked; or a JSON object with "query" and maybe "count".
    Queries that differ only in white space and control characters are one. Raises SettingsError.
    """
    read, first, counts = 0, dict[str, str](), Counter[str]()
    for line in _lines(path):
        text, count = _query(line.decode("utf-8", "replace").strip("\ufeff\r\n"))
        cleaned = clean_query(text)
        if cleaned:
            read += 1
            first.setdefault(cleaned, text)
            counts[cleaned] += count
    if not read:
        raise SettingsError(f"{path} holds no query; write one a line")
    return QueryLog(read, tuple(first[cleaned] for cleaned, _ in counts.most_common()))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(0, "rb", closefd=False) if str(path) == "-" else path.open("rb") as raw:
            yield from _unpacked(raw)
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; name a file with one query a line") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


def _unpacked(raw: io.BufferedReader) -> Iterable[bytes]:
    return gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw


def _query(line: str) -> tuple[str, int]:
    row = _row(line) if line.lstrip().startswith("{") else None
    if row is not None:
        count = row.get("count")
        return str(row["query"]), count if isinstance(count, int) else 1
    text, tab, times = line.rpartition("\t")
    return (text, int(times)) if tab and _COUNT.fullmatch(times.strip()) else (line, 1)


def _row(line: str) -> Mapping[str, object] | None:
    """The object that a line holds, where it has a query; None for a query that only begins like one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("query"), str) else None
