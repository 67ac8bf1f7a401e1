"""Read a query log: its distinct queries, the most frequent first."""

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
    """The number of queries in a file, and the distinct ones as first written, the most frequent first."""

    query_count: int
    queries: tuple[str, ...]

    def __repr__(self) -> str:
        return f"QueryLog({self.query_count} queries, {len(self.queries)} distinct)"


def read_query_log(path: Path) -> QueryLog:
    """Read the queries of a file, plain or gzip; "-" is standard input. Blank lines are ignored.

    A line is a query; a query, a tab and a count; or a JSON object with "query" and perhaps "count". Queries that differ
    only in white space and control characters count as one. Raises SettingsError.
    """
    query_count = 0
    first_spelling: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for line in _read_lines(path):
        query, count = _parse_line(line.decode("utf-8", "replace").strip("\ufeff\r\n"))
        cleaned_query = clean_query(query)
        if cleaned_query:
            query_count += 1
            first_spelling.setdefault(cleaned_query, query)
            counts[cleaned_query] += count
    if not query_count:
        raise SettingsError(f"{path} holds no query; write one query per line")
    return QueryLog(query_count, tuple(first_spelling[cleaned_query] for cleaned_query, _ in counts.most_common()))


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with open(0, "rb", closefd=False) if str(path) == "-" else path.open("rb") as file:
            yield from _decompress_if_gzip(file)
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; name a file with one query per line") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SettingsError(f"{path} cannot be read: {error}; name another file") from None


def _decompress_if_gzip(file: io.BufferedReader) -> Iterable[bytes]:
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file


def _parse_line(line: str) -> tuple[str, int]:
    """Return the query of a line and its count."""
    row = _parse_json_line(line) if line.lstrip().startswith("{") else None
    if row is not None:
        row_count = row.get("count")
        return str(row["query"]), row_count if isinstance(row_count, int) else 1
    query, tab, count = line.rpartition("\t")
    return (query, int(count)) if tab and _COUNT.fullmatch(count.strip()) else (line, 1)


def _parse_json_line(line: str) -> Mapping[str, object] | None:
    """Return the JSON object of a line, or None for a query that only begins with a brace."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("query"), str) else None
