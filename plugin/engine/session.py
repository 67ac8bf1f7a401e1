"""Connections to an engine, with room for all that its answers may hold."""

from __future__ import annotations

from typing import Any

import aiohttp

_MAX_HEADER_BYTES = 1_048_576
_MAX_HEADERS = 65_536


def make_engine_session(**options: Any) -> aiohttp.ClientSession:
    """Return a session for requests to an engine. `options` are those of aiohttp.ClientSession.

    An engine may send hundreds of deprecation warnings, each as a header. aiohttp would refuse an answer with 128. What was
    asked for is done all the same, so its answer must arrive.
    """
    return aiohttp.ClientSession(
        max_line_size=_MAX_HEADER_BYTES, max_field_size=_MAX_HEADER_BYTES, max_headers=_MAX_HEADERS, **options
    )
