"""Read lines and JSON objects from text files, and report every fault with its path and line.

Every reader takes UTF-8 text, also gzipped when the name ends in `.gz`, and keeps the order of the file. Unusable
content raises DataError with path and line. A file that cannot be opened raises SettingsError.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from querylift.index_tools.corpora.records import StrPath
from querylift.plugin.errors import DataError, SettingsError


def read_lines(path: StrPath, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Stream the lines of a UTF-8 file without line ends, each with its number from 1. Blank lines come if `blank`.

    Only a line feed ends a line, because JSON may hold the other characters at which Python's `splitlines` cuts.
    """
    number = 0
    try:
        with _open_file(path) as stream:
            for number, line_bytes in enumerate(stream, 1):
                line = line_bytes.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode().rstrip("\r\n")
                if blank or line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        problem = f"this line is not UTF-8: {error.reason} at byte {error.start + 1} of the line"
        raise DataError(path, number, f"{problem}; convert the file, for example with iconv") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(path, number + 1, f"the gzip file is broken ({error}); copy or compress it again") from error


def _open_file(path: StrPath) -> io.BufferedIOBase:
    try:
        return gzip.open(path) if os.fspath(path).endswith(".gz") else Path(path).open("rb")
    except OSError as error:
        raise SettingsError(f"{os.fspath(path)!r} cannot be read: {error.strerror}; name another file") from error


def read_first_character(path: StrPath) -> str:
    """Return the first character of a file that is not whitespace, or '' when there is none."""
    return next((line.strip()[0] for _, line in read_lines(path)), "")


def read_jsonl(path: StrPath) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream the objects of a JSONL file, each with its line number."""
    for number, line in read_lines(path):
        row = _parse_json_line(path, number, line=line)
        if not isinstance(row, dict):
            raise DataError(path, number, f"this line is a JSON {type(row).__name__}; write an object, {{...}}")
        yield number, row


def _parse_json_line(path: StrPath, number: int, *, line: str) -> object:
    try:
        row: object = json.loads(line)
        if "\\ud" in line.lower():
            # Half a surrogate pair is valid JSON, but no engine accepts it and no UTF-8 file can hold it.
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(path, number, "half a surrogate pair is in this line; remove the lone \\ud escape") from error
    except json.JSONDecodeError as error:
        raise DataError(
            path, number, f"this line is not JSON ({error.msg}, column {error.colno}); correct it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, number, f"Python cannot hold this JSON: {error}; write a smaller value") from error
    return row


def get_json_id(path: StrPath, number: int, row: Mapping[str, Any]) -> str:
    """Return the `_id` or `id` of a JSONL row; an integer becomes text. Raise DataError when it is missing or unusable."""
    value = row.get("_id", row.get("id"))
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip():
        raise DataError(path, number, f"'_id' is {_describe_value(value)}; give every line its own text or number")
    return text


def get_json_text(path: StrPath, number: int, row: Mapping[str, Any], *, names: Sequence[str]) -> str:
    """Return the first of the fields `names` that a JSONL row has. Raise DataError when none is there, or it is no text."""
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str):
        raise DataError(
            path, number, f"{names[0]!r} is {_describe_value(value)}; write it as a text, which may be empty"
        )
    return value


def _describe_value(value: object) -> str:
    if value is None:
        return "missing"
    return "empty" if isinstance(value, str) else f"a {type(value).__name__}"
