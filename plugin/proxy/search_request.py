"""Read a search request, or say why it is not read."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from querylift.plugin.outcome import HEADER, Outcome
from querylift.plugin.proxy import routes
from querylift.plugin.proxy.upstream import Headers

_HEADER = HEADER.lower().encode()
_OFF = (b"off", b"false", b"0")
_RESHAPED = ("filter_path", "format")


@dataclass(frozen=True, slots=True)
class Request:
    """A search request, read whole. `raw` is the body as it came, `body` the same decompressed."""

    route: routes.Route
    method: str
    path: str
    query_string: str
    headers: Headers
    raw: bytes
    body: bytes
    in_url: bool = False

    def for_rewritten(self) -> tuple[str, Headers]:
        """The query string and the headers that go with another body."""
        if self.in_url:
            headers = [(k, v) for k, v in self.headers if k != b"content-type"]
            return routes.without_source(self.query_string), [*headers, (b"content-type", b"application/json")]
        if self.body is not self.raw:
            return self.query_string, [(k, v) for k, v in self.headers if k != b"content-encoding"]
        return self.query_string, self.headers


def read(scope: dict[str, Any], route: routes.Route, path: str, raw: bytes, limit: int) -> Request | Outcome:
    """The search request, or the outcome of one that is not read: switched off, or of an unknown encoding."""
    headers: Headers = scope["headers"]
    first = dict(reversed(headers))  # the first of each name, where one is repeated
    query_string = scope["query_string"].decode("latin-1")
    if first.get(_HEADER, b"").strip().lower() in _OFF:
        return Outcome("skipped", "off")
    if route.api == "_msearch" and _reshapes_the_answer(query_string, first.get(b"accept", b"")):
        return Outcome("skipped", "encoding")
    if not raw and "source=" in query_string:
        return _from_url(scope, route, path, query_string)
    if not raw:
        return Outcome("skipped", "uri-query" if "q=" in query_string else "no-text")
    if not routes.readable_media_type(first.get(b"content-type", b"").decode("latin-1")):
        return Outcome("skipped", "encoding")
    body = _decompressed(raw, first.get(b"content-encoding", b"").strip().lower(), limit)
    if isinstance(body, Outcome):
        return body
    return Request(route, scope["method"], path, query_string, headers, raw, body)


def _reshapes_the_answer(query_string: str, accept: bytes) -> bool:
    """Whether the answers of an `_msearch` would come in a form in which a refusal could not be seen."""
    parameters = routes.parameters(query_string) if query_string else {}
    return any(name in parameters for name in _RESHAPED) or not (not accept or b"json" in accept or b"*/*" in accept)


def _from_url(scope: dict[str, Any], route: routes.Route, path: str, query_string: str) -> Request | Outcome:
    parameters = routes.parameters(query_string)
    if not routes.readable_media_type(parameters.get("source_content_type", "")):
        return Outcome("skipped", "encoding")
    body = parameters.get("source", "").encode("utf-8", "surrogatepass")
    return Request(route, scope["method"], path, query_string, scope["headers"], b"", body, in_url=True)


def _decompressed(raw: bytes, encoding: bytes, limit: int) -> bytes | Outcome:
    """The body as text bytes. A gzip body is opened up to `limit` bytes and no further: it may be a bomb."""
    if encoding in (b"", b"identity"):
        return raw
    if encoding != b"gzip":
        return Outcome("skipped", "encoding")
    try:
        opener = zlib.decompressobj(wbits=31)
        body = opener.decompress(raw, limit + 1)
    except zlib.error:
        return Outcome("skipped", "encoding")
    if len(body) > limit:
        return Outcome("skipped", "too-large")
    return body if opener.eof else Outcome("skipped", "encoding")
