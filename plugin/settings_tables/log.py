"""The table `[log]` of querylift.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from querylift.plugin.settings_tables.base import SettingsTable

_FORBIDDEN_IN_INDEX = set('\\/*?"<>| ,#:')
"""Engines refuse these signs in the name of an index."""


class LogSettings(SettingsTable):
    """`[log]`: the form of the log, and where a record of each search goes: the log, a file, an index of the engine.

    A record has the shape of a UBI query record, with the query's hash or its text.
    """

    format: Literal["text", "json"] = "text"
    searches: bool = False
    query_text: bool = False
    searches_file: Path | None = None
    searches_index: str | None = None

    @field_validator("searches_index")
    @classmethod
    def _check_index_name(cls, value: str | None) -> str | None:
        if value is not None and (
            not value or value != value.lower() or value[0] in "_-+." or set(value) & _FORBIDDEN_IN_INDEX
        ):
            raise ValueError("name one index in small letters, such as 'ubi_queries'")
        return value
