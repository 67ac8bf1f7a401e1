"""Read a search request, or say with an outcome why it is not read."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from querylift.plugin.outcome import OUTCOME_HEADER, Outcome
from querylift.plugin.proxy import routes
from querylift.plugin.proxy.upstream import Headers

_OUTCOME_HEADER = OUTCOME_HEADER.lower().encode()
_OFF_VALUES = (b"off", b"false", b"0")
_ANSWER_SHAPE_PARAMETERS = ("filter_path", "format")


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A search request with its whole body. `raw_body` is as the client sent it, and `body` is decompressed.

    `in_url` is true when the search came in the URL parameter `source`. Then `body` holds it, and `raw_body` is empty.
    """

    route: routes.Route
    method: str
    path: str
    query_string: str
    headers: Headers
    raw_body: bytes
    body: bytes
    in_url: bool = False

    def adapt_to_new_body(self) -> tuple[str, Headers]:
        """Return the query string and the headers that fit a rewritten body."""
        if self.in_url:
            headers = [(name, value) for name, value in self.headers if name != b"content-type"]
            return routes.remove_source_parameters(self.query_string), [
                *headers,
                (b"content-type", b"application/json"),
            ]
        if self.body is not self.raw_body:
            return self.query_string, [(name, value) for name, value in self.headers if name != b"content-encoding"]
        return self.query_string, self.headers


def read_search_request(
    scope: dict[str, Any], route: routes.Route, path: str, raw_body: bytes, limit_bytes: int
) -> SearchRequest | Outcome:
    """Return the search request, or the outcome of one that cannot be read or that the client switched off."""
    headers: Headers = scope["headers"]
    header_values = dict(reversed(headers))  # the first value of a repeated header
    query_string = scope["query_string"].decode("latin-1")
    if header_values.get(_OUTCOME_HEADER, b"").strip().lower() in _OFF_VALUES:
        return Outcome("skipped", "off")
    if route.api == "_msearch" and _hides_rejections(query_string, header_values.get(b"accept", b"")):
        return Outcome("skipped", "hidden-refusal")
    if not raw_body and "source=" in query_string:
        return _read_from_url(scope, route, path, query_string)
    if not raw_body:
        return Outcome("skipped", "uri-query" if "q=" in query_string else "no-text")
    if not routes.is_readable_media_type(header_values.get(b"content-type", b"").decode("latin-1")):
        return Outcome("skipped", "encoding")
    body = _decompress(raw_body, header_values.get(b"content-encoding", b"").strip().lower(), limit_bytes)
    if isinstance(body, Outcome):
        return body
    return SearchRequest(route, scope["method"], path, query_string, headers, raw_body, body)


def _hides_rejections(query_string: str, accept: bytes) -> bool:
    """Whether the answer of an `_msearch` would have a form in which a rejection cannot be seen."""
    parameters = routes.parse_parameters(query_string) if query_string else {}
    accepts_json = not accept or b"json" in accept or b"*/*" in accept
    return any(name in parameters for name in _ANSWER_SHAPE_PARAMETERS) or not accepts_json


def _read_from_url(scope: dict[str, Any], route: routes.Route, path: str, query_string: str) -> SearchRequest | Outcome:
    parameters = routes.parse_parameters(query_string)
    if not routes.is_readable_media_type(parameters.get("source_content_type", "")):
        return Outcome("skipped", "encoding")
    body = parameters.get("source", "").encode("utf-8", "surrogatepass")
    return SearchRequest(route, scope["method"], path, query_string, scope["headers"], b"", body, in_url=True)


def _decompress(raw_body: bytes, encoding: bytes, limit_bytes: int) -> bytes | Outcome:
    """Return the decompressed body. Decompression stops at `limit_bytes`, because the body may be a gzip bomb."""
    if encoding in (b"", b"identity"):
        return raw_body
    if encoding != b"gzip":
        return Outcome("skipped", "encoding")
    try:
        decompressor = zlib.decompressobj(wbits=31)
        body = decompressor.decompress(raw_body, limit_bytes + 1)
    except zlib.error:
        return Outcome("skipped", "encoding")
    if len(body) > limit_bytes:
        return Outcome("skipped", "too-large")
    return body if decompressor.eof else Outcome("skipped", "encoding")
