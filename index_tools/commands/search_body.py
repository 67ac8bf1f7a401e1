"""Search bodies of the user's own, named by the option --body."""

from __future__ import annotations

import json
from pathlib import Path

from querylift.index_tools.searching import QUERY_PLACEHOLDER, BodyFormatter, make_template_formatter
from querylift.plugin.errors import SettingsError
from querylift.plugin.text_files import read_whole_text


def read_body_formatter(path: Path) -> BodyFormatter:
    """Return a formatter of the search body in a JSON file. Raises SettingsError when it is no JSON or names no query."""
    try:
        template = json.loads(read_whole_text(path))
    except (RecursionError, ValueError) as error:
        raise SettingsError(f"--body is {path}, which cannot be read as JSON ({error}); name another file") from None
    if not isinstance(template, dict) or QUERY_PLACEHOLDER not in json.dumps(template):
        raise SettingsError(f"--body is {path}, which lacks {QUERY_PLACEHOLDER}; write it in place of the query")
    return make_template_formatter(template)
