"""Which requests are searches that may be expanded. Everything else is streamed through."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode

Api = Literal["_search", "_msearch", "_async_search"]

_ROUTE = re.compile(r"\A/(?:([^/]+)/)?(_search|_msearch|_async_search)/?\Z")
_MEDIA_TYPES = re.compile(r"\Aapplication/(?:json|x-ndjson|vnd\.[a-z]+\+(?:json|x-ndjson)) *(?:;|\Z)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Route:
    """A search API and the index expression of its path, None where it has none."""

    api: Api
    index: str | None


def match(method: str, path: str) -> Route | None:
    """The search route of a request, given its path as it came over the wire; None for anything else."""
    if method not in ("GET", "POST") or "_" not in path:
        return None
    found = _ROUTE.match(path)
    if found is None:
        return None
    index = unquote(found[1]) if found[1] else None
    if index is not None and index.startswith("_") and index != "_all":
        return None  # an API of its own, like /_render/..., never an index
    api: Api = found[2]  # type: ignore[assignment]
    return Route(api, index)


def readable_media_type(content_type: str) -> bool:
    """Whether a body of this media type is the JSON that is read here. A missing one is for the engine to refuse."""
    return bool(_MEDIA_TYPES.match(content_type))


def parameters(query_string: str) -> dict[str, str]:
    """The URL's parameters, the last of each name, as the engines read them."""
    return dict(parse_qsl(query_string, keep_blank_values=True))


def without_source(query_string: str) -> str:
    """The query string less `source` and `source_content_type`, once their text has moved into the body."""
    kept = [(k, v) for k, v in parse_qsl(query_string, keep_blank_values=True) if k not in _SOURCE]
    return urlencode(kept)


_SOURCE = frozenset({"source", "source_content_type"})
