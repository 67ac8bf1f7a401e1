"""The search bodies of a command: on fields that are named, or the user's own, named by the option --body."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from querylift.index_tools.searching import (
    QUERY_PLACEHOLDER,
    BodyFormatter,
    format_search_body,
    make_match_formatter,
    make_template_formatter,
)
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings
from querylift.plugin.text_files import read_whole_text


def choose_field_formatter(settings: Settings, index: str, search_fields: Sequence[str]) -> BodyFormatter:
    """Return a formatter of searches on these fields, on those of the index's settings table, or on the default field."""
    table = settings.find_index_settings(index)
    return make_field_formatter(tuple(search_fields) or (table.fields if table else ()))


def make_field_formatter(fields: Sequence[str]) -> BodyFormatter:
    """Return a formatter of searches on these fields, or on the default field when there are none."""
    return make_match_formatter(fields) if fields else format_search_body


def read_body_formatter(path: Path) -> BodyFormatter:
    """Return a formatter of the search body in a JSON file. Raises SettingsError when it is no JSON or names no query."""
    try:
        template = json.loads(read_whole_text(path))
    except (RecursionError, ValueError) as error:
        raise SettingsError(f"--body is {path}, which cannot be read as JSON ({error}); name another file") from None
    if not isinstance(template, dict) or QUERY_PLACEHOLDER not in json.dumps(template):
        raise SettingsError(f"--body is {path}, which lacks {QUERY_PLACEHOLDER}; write it in place of the query")
    return make_template_formatter(template)
