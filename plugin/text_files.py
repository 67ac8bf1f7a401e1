"""Read lines and JSON objects from users' text files, and report every fault with its path and line.

Text is UTF-8. It may be gzipped: then the name ends in `.gz`, or the first two bytes say so. A line that cannot be used raises
DataError. It names the encoding or the format that the file probably has, and the command that converts it.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from querylift.plugin.errors import DataError, SettingsError

_GZIP_START = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ": "compressed with xz",
    b"BZh91AY&SY": "compressed with bzip2",
    b"PAR1": "a Parquet file",
}
"""How files of other formats begin."""
_WIDE_ENCODINGS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""The byte order marks of encodings with more than one byte for every character."""


def read_lines(path: str | os.PathLike[str], *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Stream the lines of a file without line ends, each with its number from 1. Blank lines come if `blank`.

    Only a line feed ends a line, because JSON may hold the other characters at which Python's `splitlines` cuts.
    Raises SettingsError when the file cannot be opened, and DataError when a line cannot be used.
    """
    try:
        stream = Path(path).open("rb")
    except OSError as error:
        raise SettingsError(f"{os.fspath(path)!r} cannot be read: {error.strerror}; name another file") from error
    with stream:
        yield from decode_lines(stream, os.fspath(path), blank=blank)


def decode_lines(stream: io.BufferedReader, name: str, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Stream the lines of an open file as `read_lines` does. `name` stands for the file in errors."""
    is_gzip = name.endswith(".gz") or stream.peek(2)[:2] == _GZIP_START
    number = 0
    is_beyond_ascii = False
    try:
        for number, line_bytes in enumerate(gzip.GzipFile(fileobj=stream) if is_gzip else stream, 1):
            if number == 1:
                line_bytes = line_bytes.removeprefix(_BYTE_ORDER_MARK)
            if line := _decode_line(line_bytes, name, number, is_gzip=is_gzip, is_beyond_ascii=is_beyond_ascii):
                is_beyond_ascii = is_beyond_ascii or not line.isascii()
            if blank or line.strip():
                yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(name, number + 1, f"the gzip file is broken ({error}); copy or compress it again") from error
    except OSError as error:
        raise SettingsError(f"{name!r} cannot be read: {error.strerror or error}; name another file") from error


def read_first_character(path: str | os.PathLike[str]) -> str:
    """Return the first character of a file that is not whitespace, or "" when there is none. Raises as `read_lines` does."""
    return next((line.strip()[0] for _, line in read_lines(path)), "")


def parse_json_object(line: str, path: str | os.PathLike[str], number: int) -> dict[str, Any]:
    """Return the JSON object that a line of a file holds. Raises DataError when it holds anything else."""
    try:
        row: object = json.loads(line)
    except json.JSONDecodeError as error:
        problem = f"this line is not JSON ({error.msg}, column {error.colno})"
        raise DataError(path, number, f"{problem}; write one JSON object on each line") from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, number, f"Python cannot hold this JSON: {error}; write a smaller value") from error
    if not isinstance(row, dict):
        raise DataError(path, number, f"this line is a JSON {type(row).__name__}; write an object, {{...}}")
    return row


def read_whole_text(path: Path) -> str:
    """Return the text of a small file, such as a search body. Raises SettingsError and DataError as `read_lines` does."""
    return "\n".join(line for _, line in read_lines(path, blank=True))


def _decode_line(line: bytes, name: str, number: int, *, is_gzip: bool, is_beyond_ascii: bool) -> str:
    if number == 1 and (problem := _describe_other_format(line)):
        raise DataError(name, number, problem)
    if encoding := _guess_wide_encoding(line):
        raise DataError(name, number, f"the file is {encoding.upper()}; {_suggest_conversion(encoding, name, is_gzip)}")
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        problem = f"this line is not UTF-8: {error.reason} at byte {error.start + 1} of the line"
        if is_beyond_ascii:
            remedy = "lines before it are UTF-8, so correct this line alone"
        elif encoding := _guess_narrow_encoding(line):
            remedy = f"it looks like {encoding}; {_suggest_conversion(encoding, name, is_gzip)}"
        else:
            remedy = f"find out its encoding; {_suggest_conversion('ENCODING', name, is_gzip)}"
        raise DataError(name, number, f"{problem}; {remedy}") from error


def _describe_other_format(start: bytes) -> str:
    """Return what the file is, and the remedy. "" stands for text."""
    for magic, description in _OTHER_FORMATS.items():
        if start.startswith(magic):
            return f"the file is {description}, not text; unpack or export it as text first"
    return ""


def _guess_wide_encoding(line: bytes) -> str:
    """Return the name of an encoding that has NUL bytes in every Latin letter, and "" when the line has few of them."""
    for mark, encoding in _WIDE_ENCODINGS.items():
        if line.startswith(mark):
            return encoding
    if b"\0" not in line or line.count(0) * 3 < len(line):
        return ""
    return "utf-16le" if line.index(0) % 2 else "utf-16be"


def _guess_narrow_encoding(line: bytes) -> str:
    """Return the name of a Western encoding when few bytes of the line are outside ASCII, and "" otherwise."""
    high_bytes = [byte for byte in line if byte >= 0x80]
    if len(high_bytes) * 3 > len(line):
        return ""
    return "windows-1252" if any(byte < 0xA0 for byte in high_bytes) else "latin1"


def _suggest_conversion(encoding: str, name: str, is_gzip: bool) -> str:
    command = f"iconv -f {encoding} -t utf-8"
    file = shlex.quote(name)
    return f"convert it: {f'zcat {file} | {command}' if is_gzip else f'{command} {file}'} > NEW_FILE"
