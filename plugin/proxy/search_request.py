"""Read a search request, or say with an outcome why it is not read."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Any

from querylift.plugin.outcome import OUTCOME_HEADER, Outcome
from querylift.plugin.proxy import routes
from querylift.plugin.proxy.forwarded_headers import Headers

_OUTCOME_HEADER = OUTCOME_HEADER.lower().encode()
_OFF_VALUES = (b"off", b"false", b"0")
_UNREADABLE_FORMATS = (b"yaml", b"cbor", b"smile")
_SHARDS_PATTERNS = frozenset({"*", "**", "_shards", "_shards.*", "_shards.**", "_shards.failed"})
"""Patterns of `filter_path` that leave the report of the shards in the answer."""


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
        """Return the query string and the headers that fit a rewritten body.

        Of the encodings that the client accepts, only gzip is left. In another one, a rejection could not be seen.
        """
        headers = self.headers
        accepted = b",".join(value for name, value in headers if name == b"accept-encoding")
        if accepted and accepted != b"gzip":
            headers = [(name, value) for name, value in headers if name != b"accept-encoding"]
            if _accepts_gzip(accepted):
                headers.append((b"accept-encoding", b"gzip"))
        if self.in_url:
            headers = [(name, value) for name, value in headers if name != b"content-type"]
            headers.append((b"content-type", b"application/json"))
            return routes.remove_source_parameters(self.query_string), headers
        if self.body is not self.raw_body:
            headers = [(name, value) for name, value in headers if name != b"content-encoding"]
        return self.query_string, headers


def read_search_request(
    scope: dict[str, Any], route: routes.Route, path: str, raw_body: bytes, limit_bytes: int
) -> SearchRequest | Outcome:
    """Return the search request, or the outcome of one that cannot be read or that the client switched off."""
    headers: Headers = scope["headers"]
    header_values = dict(reversed(headers))  # the first value of a repeated header
    query_string = scope["query_string"].decode("latin-1")
    if header_values.get(_OUTCOME_HEADER, b"").strip().lower() in _OFF_VALUES:
        return Outcome("skipped", "off")
    if _hides_rejection(route.api, query_string, headers):
        return Outcome("skipped", "unseen")
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


def _hides_rejection(api: routes.SearchApi, query_string: str, headers: Headers) -> bool:
    """Whether a rejection could not be seen in the answer: because of its form, or because it comes later."""
    if api == "_async_search":
        return True  # shards may still fail after the first answer
    accepted = b",".join(value for name, value in headers if name == b"accept").lower()
    if any(form in accepted for form in _UNREADABLE_FORMATS):
        return True
    if not query_string:
        return False
    parameters = routes.parse_parameters(query_string)
    answer_format = parameters.get("format", "")
    if answer_format and "json" not in answer_format.lower():
        return True
    patterns = [pattern.strip() for pattern in parameters.get("filter_path", "").split(",") if pattern.strip()]
    return bool(patterns) and (api == "_msearch" or not _keep_shards_report(patterns))


def _keep_shards_report(patterns: list[str]) -> bool:
    """Whether these patterns of `filter_path` leave `_shards.failed` in the answer. False when in doubt."""
    included = [pattern for pattern in patterns if not pattern.startswith("-")]
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("-")]
    if any("*" in pattern or pattern.startswith("_shards") for pattern in excluded):
        return False
    return not included or not _SHARDS_PATTERNS.isdisjoint(included)


def _accepts_gzip(accepted: bytes) -> bool:
    """Whether the value of Accept-Encoding allows gzip."""
    for item in accepted.lower().split(b","):
        name, _, parameters = item.partition(b";")
        if name.strip() in (b"gzip", b"*") and not re.search(rb"q\s*=\s*0(?:\.0*)?\s*(?:;|\Z)", parameters):
            return True
    return False


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
