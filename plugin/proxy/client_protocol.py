"""HTTP/1.1 with clients: uvicorn's protocol, with the limits and the exactness that a proxy needs."""

from __future__ import annotations

import re
from enum import Enum
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from querylift.plugin.proxy.error_answer import build_error_body

MAX_HEAD_BYTES = 32_768
"""Most bytes of a request line and its headers. Engines take 16 KB unless they are told otherwise."""
MAX_HEADERS = 500
"""Most headers of a request. Each one costs time here and once more on the way to the engine."""
HALF_CLOSED_S = 1.0
"""A client that closes its sending half waits this long for its answer. Engines wait for even less. A client that is
gone looks the same, and its search must not go on for long."""
LINGER_S = 2.0
"""A refused client may be sending still. A connection closed at once would take the refusal away from it."""

_NOT_ASCII = re.compile(rb"[\x80-\xff]")


class _Line(Enum):
    """What the next byte from the client belongs to."""

    NEXT_REQUEST = "a request line that has not begun"
    REQUEST_LINE = "a request line whose beginning was seen"
    OTHER = "headers, a body, or a line whose beginning came in the middle of other bytes"


class RequestRefused(Exception):
    """The request breaks a rule. `status` and `reason` go to the client, and then its connection is closed."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ClientProtocol(HttpToolsProtocol):
    """One connection of a client.

    uvicorn runs the requests one after another. This class decides what a request is: it bounds the head, reads raw
    UTF-8 in a request line as engines do, and answers a client that closes its sending half.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._head_bytes = 0
        self._line = _Line.NEXT_REQUEST
        self._unparsed_bytes = 0
        self._is_refused = False
        self._refusal: RequestRefused | None = None
        self._active_cycle: RequestResponseCycle | None = None

    # Bytes from the client

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        if self._line is not _Line.OTHER:
            data = self._escape_request_line(data)
        self._unparsed_bytes += len(data)
        try:
            self.parser.feed_data(data)
            if self._unparsed_bytes > MAX_HEAD_BYTES:
                self._refuse_large_head()
        except httptools.HttpParserError:
            self._refuse(self._refusal or RequestRefused(HTTPStatus.BAD_REQUEST, "this is not an HTTP/1.1 request"))
        except RequestRefused as refusal:
            self._refuse(refusal)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio reads the result
        """Return whether the connection stays open for an answer: only for a request that came completely."""
        cycle = self.cycle
        if self._is_refused or cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        self.loop.call_later(HALF_CLOSED_S, self._close_unless_answering)
        return True

    def _close_unless_answering(self) -> None:
        cycle = self._active_cycle
        if cycle is None or not cycle.response_started:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in (self._active_cycle, *(waiting_cycle for waiting_cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def _escape_request_line(self, data: bytes) -> bytes:
        """Percent-encode the bytes over 127 in a request line that begins `data` or goes on in it.

        The parser refuses such bytes. Engines read each as the Latin-1 character, so that character is what is encoded.
        """
        if self._line is _Line.NEXT_REQUEST:  # blank lines may come first
            start = len(data) - len(data.lstrip(b"\r\n"))
            if start == len(data):
                return data
        else:
            start = 0
        end = data.find(b"\n", start)
        self._line = _Line.REQUEST_LINE if end < 0 else _Line.OTHER
        line = data if end < 0 else data[:end]
        if line.isascii():
            return data
        return _NOT_ASCII.sub(_encode_latin_1, line) + data[len(line) :]

    # What the parser reports

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._line is _Line.NEXT_REQUEST:
            self._line = _Line.OTHER

    def on_url(self, url: bytes) -> None:
        self._count_head_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head_bytes(len(name) + len(value) + 4)
        if len(self.headers) >= MAX_HEADERS:
            self._refuse_in_parser(
                RequestRefused(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"the request has more than {MAX_HEADERS} headers; send fewer",
                )
            )
        super().on_header(name, value.rstrip(b" \t"))  # the parser leaves spaces that are no part of the value

    def on_headers_complete(self) -> None:
        self._unparsed_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes = 0
        self._line = _Line.NEXT_REQUEST
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active_cycle = cycle
        super()._start_asgi_task(cycle, app)

    # Refusals

    def _count_head_bytes(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_large_head()

    def _refuse_large_head(self) -> None:
        reason = f"the request line and the headers are larger than {MAX_HEAD_BYTES} bytes; send less in them"
        self._refuse_in_parser(RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason))

    def _refuse_in_parser(self, refusal: RequestRefused) -> None:
        """Raise `refusal`. The parser reports an error of its own instead, so the refusal is kept too."""
        self._refusal = refusal
        raise refusal

    def _refuse(self, refusal: RequestRefused) -> None:
        """Answer with an error and close. Requests that came completely before get their answers first."""
        self._is_refused = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._answer_refusal(refusal)
        elif not cycle.more_body:
            cycle.keep_alive = False
        elif cycle is self._active_cycle and not cycle.response_started:
            cycle.disconnected = True
            cycle.message_event.set()
            self._answer_refusal(refusal)
        else:
            self.transport.close()

    def _answer_refusal(self, refusal: RequestRefused) -> None:
        body = build_error_body(refusal.status, "querylift_bad_request", refusal.reason)
        head = f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}\r\ncontent-type: application/json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.loop.call_later(LINGER_S, self.transport.close)


def _encode_latin_1(match: re.Match[bytes]) -> bytes:
    return quote(match[0].decode("latin-1")).encode()
