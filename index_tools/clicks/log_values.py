"""Read single values of JSON lines. A value of the wrong kind is a DataError with the path and the line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from querylift.plugin.errors import DataError

_MILLISECONDS_FROM = 1e11
"""A larger number is a time in milliseconds: in seconds it would be a year after 5000."""


def read_text(row: Mapping[str, Any], key: str, path: Path, line: int) -> str:
    """Return the text of `key`, or "" when there is none."""
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str | int):
        raise DataError(path, line, f"{key} is {value!r}; write a text")
    return str(value)


def read_object(row: Mapping[str, Any], key: str, path: Path, line: int) -> Mapping[str, Any]:
    """Return the object of `key`, or an empty one when there is none."""
    value = row.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(path, line, f"{key} is {value!r}; write an object, {{...}}")
    return value


def read_time_s(row: Mapping[str, Any], path: Path, line: int) -> float | None:
    """Return `timestamp` in seconds since 1970, or None. It is a date and time, or a number of seconds or milliseconds."""
    value = row.get("timestamp")
    if value is None:
        return None
    try:
        if isinstance(value, str) and not value.isdecimal():
            time = datetime.fromisoformat(value)
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        number = float(value)
        if not math.isfinite(number):
            raise ValueError("not finite")
    except (TypeError, ValueError, OverflowError):
        remedy = "write a time like 2026-11-29T08:00:00.000Z, or milliseconds since 1970"
        raise DataError(path, line, f"timestamp is {value!r}; {remedy}") from None
    return number / 1000 if number > _MILLISECONDS_FROM else number
