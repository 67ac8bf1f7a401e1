"""Read a query log: its distinct queries, the most frequent first."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import clean_query
from querylift.plugin.text_files import decode_lines, parse_json_object, read_lines

_COUNT = re.compile(r"[0-9]{1,15}")
_MAX_COUNT = 10**15
_QUERY_KEYS = ("query", "user_query")
"""The keys of a query's text: of hand-made logs, and of the search log of `querylift serve`."""
_CSV_SEPARATORS = (",", ";")
_CSV_HEADING = re.compile(r"(?i)(?:user_|search_)?(?:query|queries|terms?|keywords?|text|search)")
_CSV_REMEDY = "write the query, a tab and the count, or JSON lines"
_MIN_CSV_ROWS = 3
"""With fewer rows, equal numbers of columns may be chance."""


@dataclass(frozen=True, slots=True)
class QueryLog:
    """The number of queries in a file, and the distinct ones as first written, the most frequent first."""

    query_count: int
    queries: tuple[str, ...]

    def __repr__(self) -> str:
        return f"QueryLog({self.query_count} queries, {len(self.queries)} distinct)"


@dataclass(frozen=True, slots=True)
class _LogLine:
    """A query of a log, and how often it was asked. `is_plain` says that the whole line is the query."""

    query: str
    count: int
    is_plain: bool = False


def read_query_log(path: Path) -> QueryLog:
    """Read the queries of a file, plain or gzip; "-" is standard input. Blank lines are ignored.

    A line is a query; a query, a tab and a count; or a JSON object with "query" or "user_query" and perhaps "count". Queries
    that differ only in white space and control characters count as one.
    Raises SettingsError and DataError, also for rows of CSV, which would be taken for queries. No error shows a query.
    """
    name = "standard input" if str(path) == "-" else str(path)
    query_count = 0
    first_spelling: dict[str, str] = {}
    counts: Counter[str] = Counter()
    csv_check = _CsvCheck(name)
    for line in _parse_lines(_read_numbered_lines(path), name):
        if line.is_plain:
            csv_check.add_line(line.query)
        cleaned_query = clean_query(line.query)
        if cleaned_query:
            query_count += 1
            first_spelling.setdefault(cleaned_query, line.query)
            counts[cleaned_query] += line.count
    if not query_count:
        raise SettingsError(f"{name} holds no query; write one query per line")
    csv_check.raise_on_csv()
    return QueryLog(query_count, tuple(first_spelling[cleaned_query] for cleaned_query, _ in counts.most_common()))


def _read_numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    if str(path) != "-":
        yield from read_lines(path)
        return
    with open(0, "rb", closefd=False) as file:
        yield from decode_lines(file, "standard input")


def _parse_lines(lines: Iterable[tuple[int, str]], name: str) -> Iterator[_LogLine]:
    """Yield the queries. The first line decides whether a line that begins with a brace must be JSON."""
    is_json: bool | None = None
    for number, line in lines:
        row = _parse_json_line(line) if line.lstrip().startswith("{") else None
        if is_json is None:
            is_json = row is not None
        if row is None and is_json:
            row = parse_json_object(line, name, number)
        yield _parse_text_line(line, name, number) if row is None else _parse_row(row, name, number)


def _parse_json_line(line: str) -> dict[str, Any] | None:
    """Return the JSON object of a line, or None for a query that only begins with a brace."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _parse_row(row: Mapping[str, Any], name: str, number: int) -> _LogLine:
    query = next((row[key] for key in _QUERY_KEYS if key in row), None)
    if not isinstance(query, str):
        raise DataError(name, number, 'this object has no text under "query" or "user_query"; write {"query": ...}')
    attributes = row.get("query_attributes")
    query_hash = attributes.get("query_hash") if isinstance(attributes, dict) else row.get("query_id")
    if query and "user_query" in row and query == query_hash:
        raise DataError(name, number, "this line has the query's hash, not its text; log with log.query_text = true")
    count = row.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < _MAX_COUNT:
        raise DataError(name, number, f"the count is {_shorten(json.dumps(count))}; write a whole number, such as 12")
    return _LogLine(query, count)


def _parse_text_line(line: str, name: str, number: int) -> _LogLine:
    query, *columns = line.split("\t")
    if not columns:
        return _LogLine(query, 1, is_plain=True)
    if len(columns) > 1:
        problem = f"this line has {1 + len(columns)} columns; write the query, a tab and the count"
        raise DataError(name, number, f"{problem}, and no tab inside a query")
    if not _COUNT.fullmatch(count := columns[0].strip()):
        raise DataError(
            name, number, f"the count after the tab is {_shorten(count)!r}; write a whole number, such as 12"
        )
    return _LogLine(query, int(count))


def _shorten(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:20]}..."


class _CsvCheck:
    """Notices a file of CSV: its first line is a heading, or all its lines have the same number of columns.

    A query may hold a comma, so one line proves little.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._line_count = 0
        self._column_counts: dict[str, set[int]] = {separator: set() for separator in _CSV_SEPARATORS}
        self._ends_with_number = dict.fromkeys(_CSV_SEPARATORS, True)

    def add_line(self, line: str) -> None:
        """Count the columns of a line. Raises DataError for a first line of headings."""
        self._line_count += 1
        for separator, column_counts in self._column_counts.items():
            if len(column_counts) > 1:
                continue  # the lines differ already
            columns = _split_csv_line(line, separator)
            if self._line_count == 1 and len(columns) > 1 and any(map(_CSV_HEADING.fullmatch, columns)):
                raise DataError(self._name, 1, f"this line is a heading of CSV; {_CSV_REMEDY}")
            column_counts.add(len(columns))
            self._ends_with_number[separator] &= bool(_COUNT.fullmatch(columns[-1]))

    def raise_on_csv(self) -> None:
        """Raise DataError when every line has the same number of columns, of which there are several."""
        for separator, column_counts in self._column_counts.items():
            has_columns = len(column_counts) == 1 and column_counts != {1}
            if has_columns and (self._line_count >= _MIN_CSV_ROWS or self._ends_with_number[separator]):
                problem = f"every line has {column_counts.pop()} columns with {separator!r} between them, like CSV"
                raise DataError(self._name, 1, f"{problem}; {_CSV_REMEDY}")


def _split_csv_line(line: str, separator: str) -> list[str]:
    """Return the columns. A separator that a space follows belongs to prose, so the whole line is then one column."""
    try:
        columns = next(csv.reader([line.strip()], delimiter=separator))
    except (csv.Error, StopIteration):
        return [line]
    return [line] if any(column.startswith(" ") for column in columns) else columns
