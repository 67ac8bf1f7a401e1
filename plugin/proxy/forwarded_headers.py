"""Which headers go on: those of a request to the engine, and those of its answer to the client."""

from __future__ import annotations

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

# From RFC 9110 section 7.6.1 and, for the last, RFC 7540 section 3.2.1. After them come headers that the HTTP client
# writes itself.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
_NOT_FORWARDED = _HOP_BY_HOP | {b"host"}
_NOT_FORWARDED_WITH_WHOLE_BODY = _NOT_FORWARDED | {b"content-length"}
_AUTOMATIC_HEADERS = ("user-agent", "accept", "accept-encoding", "content-type")
"""Headers that aiohttp adds on its own."""


def select_forwarded_headers(headers: Headers, *, has_whole_body: bool) -> list[tuple[str, str]]:
    """Return the request headers for the engine. For a whole body, the HTTP client writes the length itself.

    `Expect: 100-continue` goes on only with a body that is not read yet. The engine then decides whether it is sent.
    Headers that Connection names go on too. A client could otherwise take away what a router before the proxy has set.
    """
    dropped = _NOT_FORWARDED_WITH_WHOLE_BODY if has_whole_body else _NOT_FORWARDED
    return [
        (name.decode("latin-1"), _decode_value(value))
        for name, value in headers
        if name not in dropped and not (has_whole_body and name == b"expect" and expects_continue(value))
    ]


def select_returned_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers of the engine's reply that go to the client, with names in lower case."""
    lowered = [(name.lower(), value) for name, value in headers]
    dropped = _add_connection_headers(_HOP_BY_HOP, lowered)
    return [(name, value) for name, value in lowered if name not in dropped]


def find_headers_to_skip(headers: list[tuple[str, str]]) -> list[str] | None:
    """Return the headers that aiohttp must not add. None instead of an empty list makes aiohttp faster."""
    names = {name for name, _ in headers}
    return [name for name in _AUTOMATIC_HEADERS if name not in names] or None


def expects_continue(value: bytes) -> bool:
    """Whether this value of the header Expect asks for an answer before the body is sent."""
    return value.lower() == b"100-continue"


def read_content_length(headers: Headers) -> int | None:
    """Return the announced size of the body in bytes, or None when there is no usable Content-Length."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


def _decode_value(value: bytes) -> str:
    """Return a header's value as text that aiohttp, which writes UTF-8, turns into the same bytes.

    That is impossible for bytes that are not UTF-8. They are read as Latin-1, and so arrive as UTF-8.
    """
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _add_connection_headers(dropped: frozenset[bytes], headers: Headers) -> frozenset[bytes]:
    """Return `dropped` and the headers that the Connection header names, as they concern only this hop."""
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            dropped |= {item.strip().lower() for item in value.split(b",")} - {b"content-length", b"content-type"}
    return dropped
