"""Recognise the requests that are searches and may be expanded. All other requests are streamed through."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode

SearchApi = Literal["_search", "_msearch", "_async_search"]

_ROUTE = re.compile(r"\A/(?:([^/]+)/)?(_search|_msearch|_async_search)/?\Z")
_UNREAD_ROUTES = {
    "template": re.compile(r"\A/(?:[^/]+/)?_m?search/template/?\Z"),
    "continuation": re.compile(r"\A/(?:_search/scroll(?:/[^/]+)?|_async_search/[^/]+)/?\Z"),
}
"""Searches that are never read, by the reason for it: a key of outcome.REASONS."""
_PIT_OPENING = re.compile(r"\A/([^/]+)/(?:_search/point_in_time|_pit)/?\Z")
"""How a point in time is opened: in OpenSearch, and in Elasticsearch."""
_MEDIA_TYPES = re.compile(r"\Aapplication/(?:json|x-ndjson|vnd\.[a-z]+\+(?:json|x-ndjson)) *(?:;|\Z)", re.IGNORECASE)
_SOURCE_PARAMETERS = frozenset({"source", "source_content_type"})


@dataclass(frozen=True, slots=True)
class Route:
    """A search API and the index expression in the path. `index` is None when the path has none."""

    api: SearchApi
    index: str | None


def match_search_route(method: str, path: str) -> Route | None:
    """Return the search route of a request with this raw path, or None when the request is not a search."""
    if method not in ("GET", "POST") or "_" not in path:
        return None
    match = _ROUTE.match(path)
    if match is None:
        return None
    index = unquote(match[1]) if match[1] else None
    if index is not None and index.startswith("_") and index != "_all":
        return None  # another API, such as /_render/..., and never an index
    api: SearchApi = match[2]  # type: ignore[assignment]
    return Route(api, index)


def find_unread_reason(method: str, path: str) -> str | None:
    """Return why a search with this raw path is never read, or None when the request is not a search of that kind."""
    if method not in ("GET", "POST") or "_" not in path:
        return None
    return next((reason for reason, pattern in _UNREAD_ROUTES.items() if pattern.match(path)), None)


def find_first_index(path: str) -> str | None:
    """Return the index expression with which a raw path begins, or None when it begins with the name of an API."""
    segment = unquote(path.split("/", 2)[1])
    return segment if segment and not segment.startswith("_") else None


def match_pit_opening(method: str, path: str) -> str | None:
    """Return the index expression on which a request with this raw path opens a point in time, or None for any other."""
    match = _PIT_OPENING.match(path) if method == "POST" and "_" in path else None
    if match is None:
        return None
    index = unquote(match[1])
    return index if not index.startswith("_") or index == "_all" else None


def is_readable_media_type(content_type: str) -> bool:
    """Whether a body of this media type is JSON. A missing media type is not; the engine refuses it."""
    return bool(_MEDIA_TYPES.match(content_type))


def parse_parameters(query_string: str) -> dict[str, str]:
    """Return the URL's parameters. The last value of a repeated one counts, as in the engines."""
    return dict(parse_qsl(query_string, keep_blank_values=True))


def remove_source_parameters(query_string: str) -> str:
    """Return the query string without `source` and `source_content_type`, for a search that is moved into the body."""
    pairs = parse_qsl(query_string, keep_blank_values=True)
    return urlencode([(name, value) for name, value in pairs if name not in _SOURCE_PARAMETERS])
