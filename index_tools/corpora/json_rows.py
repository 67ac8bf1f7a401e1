"""Read the rows of JSONL files: documents, queries, candidates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from querylift.index_tools.corpora.records import StrPath, normalize_id
from querylift.plugin.errors import DataError
from querylift.plugin.text_files import parse_json_object, read_lines


def read_jsonl(path: StrPath) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream the objects of a JSONL file, each with its line number. Raises SettingsError and DataError."""
    for number, line in read_lines(path):
        row = parse_json_object(line, path, number)
        if "\\ud" in line.lower():
            _check_whole_surrogate_pairs(path, number, row)
        yield number, row


def get_json_id(path: StrPath, number: int, row: Mapping[str, Any], *, names: Sequence[str] = ("_id", "id")) -> str:
    """Return the id under the first of `names` that a row has; an integer becomes text. Raises DataError without one."""
    value = next((row[name] for name in names if name in row), None)
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not normalize_id(text):
        raise DataError(
            path, number, f"{names[0]!r} is {_describe_value(value)}; give every line its own text or number"
        )
    return normalize_id(text)


def get_json_text(path: StrPath, number: int, row: Mapping[str, Any], *, names: Sequence[str]) -> str:
    """Return the first of the fields `names` that a JSONL row has. Raise DataError when none is there, or it is no text."""
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str):
        raise DataError(
            path, number, f"{names[0]!r} is {_describe_value(value)}; write it as a text, which may be empty"
        )
    return value


def _check_whole_surrogate_pairs(path: StrPath, number: int, row: Mapping[str, Any]) -> None:
    """Raise DataError for half a surrogate pair. JSON may hold one, but no engine accepts it and no UTF-8 file holds it."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(path, number, "half a surrogate pair is in this line; remove the lone \\ud escape") from error


def _describe_value(value: object) -> str:
    if value is None:
        return "missing"
    return "empty" if isinstance(value, str) else f"a {type(value).__name__}"
