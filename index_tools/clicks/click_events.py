"""Read clicks: UBI events, one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from querylift.index_tools.clicks.log_values import read_object, read_text, read_time_s
from querylift.plugin.errors import DataError
from querylift.plugin.text_files import parse_json_object, read_lines

CLICK_ACTION = "click"
"""The `action_name` of a click. Other events, such as impressions, are left out."""


@dataclass(frozen=True, slots=True)
class Click:
    """A click on a hit. `position` counts from 1, and is None when it is not known."""

    query_id: str
    object_id: str = ""
    position: int | None = None
    client_id: str = ""
    user_query: str = ""
    time_s: float | None = None


@dataclass(frozen=True, slots=True)
class ClickFile:
    """The clicks of a file, and how many events are no clicks. `counts_from_0` says that its positions began at 0."""

    clicks: tuple[Click, ...]
    other_count: int
    counts_from_0: bool


def read_clicks(path: Path) -> ClickFile:
    """Read the clicks of a file, plain or gzip. Raises SettingsError and DataError.

    A click needs `query_id`, or else `client_id`, `user_query` and `timestamp`. When a position in the file is 0, all
    positions count from 0, and are moved by one.
    """
    clicks = []
    other_count = 0
    for line, text in read_lines(path):
        row = parse_json_object(text, path, line)
        action = row.get("action_name")
        if not isinstance(action, str):
            raise DataError(path, line, f'action_name is {action!r}; write "click" for a click, as in UBI events')
        if action != CLICK_ACTION:
            other_count += 1
            continue
        clicks.append(_read_click(row, path, line))
    counts_from_0 = any(click.position == 0 for click in clicks)
    if counts_from_0:
        clicks = [
            replace(click, position=click.position + 1) if click.position is not None else click for click in clicks
        ]
    return ClickFile(tuple(clicks), other_count, counts_from_0)


def _read_click(row: Mapping[str, Any], path: Path, line: int) -> Click:
    attributes = read_object(row, "event_attributes", path, line)
    clicked_object = read_object(attributes, "object", path, line)
    click = Click(
        query_id=read_text(row, "query_id", path, line),
        object_id=read_text(clicked_object, "object_id", path, line) or read_text(row, "object_id", path, line),
        position=_read_position(read_object(attributes, "position", path, line), path, line),
        client_id=read_text(row, "client_id", path, line),
        user_query=read_text(row, "user_query", path, line),
        time_s=read_time_s(row, path, line),
    )
    if not click.query_id and not (click.client_id and click.user_query and click.time_s is not None):
        raise DataError(
            path, line, "the click has no query_id; write it, or client_id, user_query and timestamp together"
        )
    return click


def _read_position(position: Mapping[str, Any], path: Path, line: int) -> int | None:
    ordinal = position.get("ordinal")
    if ordinal is None:
        return None
    if isinstance(ordinal, bool) or not isinstance(ordinal, int) or ordinal < 0:
        raise DataError(path, line, f"position.ordinal is {ordinal!r}; write the number of the hit, from 1")
    return ordinal
