"""HTTP/1.1 with clients: uvicorn's protocol, with the limits and the exactness that a proxy needs."""

from __future__ import annotations

from asyncio import BaseTransport
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from querylift.plugin.proxy.connection_guard import ClientWait, ConnectionGuard
from querylift.plugin.proxy.error_answer import build_error_body
from querylift.plugin.proxy.request_line import RequestLineEscaper

MAX_HEAD_BYTES = 32_768
"""Most bytes of a request line and its headers. Engines take 16 KB unless they are told otherwise."""
MAX_HEADERS = 200
"""Most headers of a request. Each one costs time here and once more on the way to the engine."""
MAX_PIPELINED = 16
"""Most requests that a client may send before it has the answer to the first. One more is refused, and its connection closed."""
MIN_CHUNK_BYTES = 8
"""A body may not come in chunks that are smaller on average. A segment of chunks of one byte takes 70 ms to read."""
_FREE_CHUNKS = 1000
HALF_CLOSED_S = 1.0
"""A client that closes its sending half waits this long for its answer. Engines wait for even less. A client that is
gone looks the same, and its search must not go on for long."""
LINGER_S = 2.0
"""A refused client may be sending still. A connection closed at once would take the refusal away from it."""

_PAUSED_BYTES = 65_536
"""So much of an answer is buffered before the writing pauses."""


class RequestRefused(Exception):
    """The request breaks a rule. `status` and `reason` go to the client, and then its connection is closed."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ClientProtocol(HttpToolsProtocol):
    """One connection of a client.

    uvicorn runs the requests one after another. This class decides what a request is. It bounds the head, and drops
    trailers. It ignores `Upgrade`, as RFC 9110 section 7.8 allows: otherwise the parser would take the body of such a
    request for the next one. It reads raw UTF-8 in a request line as engines do, and answers a client that closes its
    sending half.
    """

    def __init__(self, *, guard: ConnectionGuard, wire: Any = None, **options: Any) -> None:
        """`wire` is the transport below TLS, and None without TLS."""
        super().__init__(**options)
        self._guard = guard
        self._wire = wire
        self._request_line = RequestLineEscaper()
        self._request_number = 0
        self._is_in_head = False
        self._head_bytes = 0
        self._body_bytes = 0
        self._chunk_count = 0
        self._unparsed_bytes = 0
        self._write_pauses = 0
        self._is_refused = False
        self._refusal: RequestRefused | None = None
        self._active_cycle: RequestResponseCycle | None = None

    # The connection

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if self._wire is not None:
            self.transport.set_write_buffer_limits(_PAUSED_BYTES)  # as without TLS, where it is eight times as much
        if not self._guard.admit(self, len(self.connections)):
            self._is_refused = True
            reason = "the proxy has as many connections as it can serve; try again later, or run another proxy"
            self._write_refusal(RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, reason))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.forget(self)
        for cycle in self._list_unanswered_cycles():
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio reads the result
        """Return whether the connection stays open for an answer: only for a request that came completely.

        With TLS it never does, because the event loop sends nothing after the client's end.
        """
        cycle = self.cycle
        if self._wire is not None or self._is_refused or cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        self.loop.call_later(HALF_CLOSED_S, self._close_unless_answering)
        return True

    def shutdown(self) -> None:
        """Close the connection once no request is under way, because the server stops. uvicorn calls this."""
        if self.cycle is None or self.cycle.response_complete:
            self.close_idle()
        else:
            self.cycle.keep_alive = False

    def _close_unless_answering(self) -> None:
        if self._active_cycle is None or not self._active_cycle.response_started:
            self.transport.close()

    def _list_unanswered_cycles(self) -> Iterator[RequestResponseCycle]:
        """Yield the request that is being answered and those that wait behind it."""
        for cycle in (self._active_cycle, *(waiting_cycle for waiting_cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                yield cycle

    # Bytes from the client

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        data = self._request_line.escape_line(data)
        self._unparsed_bytes += len(data)
        try:
            while data:
                data = self._parse_bytes(data)
            if self._unparsed_bytes > MAX_HEAD_BYTES:  # of a head, of trailers, or of the line before a chunk
                self._refuse_large_head()
        except httptools.HttpParserError:
            self._refuse(self._refusal or RequestRefused(HTTPStatus.BAD_REQUEST, "this is not an HTTP/1.1 request"))
        except RequestRefused as refusal:
            self._refuse(refusal)

    def _parse_bytes(self, data: bytes) -> bytes:
        """Parse `data`. Return what is to be parsed next: a request again, without `Upgrade`, and what follows it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            head = self._format_head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            return head + data[upgrade.args[0] :]
        return b""

    def _format_head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # What the parser reports

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._request_line.begin_message()
        self._request_number += 1
        self._is_in_head = True
        self._head_bytes = self._body_bytes = self._chunk_count = 0

    def on_url(self, url: bytes) -> None:
        self._count_head_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_head:
            return  # a trailer, which RFC 9110 section 6.5.1 forbids to be taken for a header
        self._count_head_bytes(len(name) + len(value) + 4)
        if len(self.headers) >= MAX_HEADERS:
            reason = f"the request has more than {MAX_HEADERS} headers; send fewer"
            self._refuse_in_parser(RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason))
        super().on_header(name, value.rstrip(b" \t"))  # the parser leaves spaces that are no part of the value

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            reason = "the proxy opens no tunnels; send the request without CONNECT"
            self._refuse_in_parser(RequestRefused(HTTPStatus.NOT_IMPLEMENTED, reason))
        if self.parser.should_upgrade():
            return  # it is parsed again
        if len(self.pipeline) >= MAX_PIPELINED:
            reason = f"more than {MAX_PIPELINED} requests wait for their answers; wait for some of them"
            self._refuse_in_parser(RequestRefused(HTTPStatus.TOO_MANY_REQUESTS, reason))
        self._is_in_head = False
        self._unparsed_bytes = 0
        self._guard.mark_busy(self)
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Count the chunks of a body. The parser calls this before each of them."""
        self._chunk_count += 1
        if self._chunk_count > _FREE_CHUNKS and self._body_bytes < self._chunk_count * MIN_CHUNK_BYTES:
            reason = f"the body comes in chunks of less than {MIN_CHUNK_BYTES} bytes; send larger ones"
            self._refuse_in_parser(RequestRefused(HTTPStatus.BAD_REQUEST, reason))

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._unparsed_bytes = 0
        self._request_line.end_message()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._active_cycle is None or self._active_cycle.response_complete:
            self._guard.mark_idle(self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active_cycle = cycle
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        self._write_pauses += 1
        super().pause_writing()

    # What the guard asks

    def describe_wait(self) -> ClientWait | None:
        """Return what the proxy waits for from the client, or None when it does not wait."""
        if self.transport.is_closing():  # what it has not taken yet holds the connection open
            unsent_bytes = self._count_unsent_bytes()
            return ClientWait("answer", self._request_number, -unsent_bytes) if unsent_bytes else None
        if self._is_refused:
            return None
        if self.flow.write_paused:
            # Between two pauses a client has taken what was buffered, so a pause is a step as a request is.
            return ClientWait("answer", self._request_number + self._write_pauses, -self._count_unsent_bytes())
        cycle = self.cycle
        if cycle is not None and cycle.more_body:
            if self.flow.read_paused or cycle.waiting_for_100_continue:
                return None
            return ClientWait("body", self._request_number, self._body_bytes)
        if cycle is None or (self._is_in_head and next(self._list_unanswered_cycles(), None) is None):
            return ClientWait("head", self._request_number, 0)
        return None

    def end_wait(self, wait: ClientWait) -> None:
        """Close the connection, because the client took too long."""
        if wait.kind == "answer":
            self.transport.abort()
        elif wait.kind == "head" and not self._is_in_head:
            self.close_idle()  # nothing ever came
        elif wait.kind == "body" and self.cycle.response_complete:
            self.transport.close()
        else:
            reason = f"the {wait.kind} of the request came too slowly; send it faster"
            self._refuse(RequestRefused(HTTPStatus.REQUEST_TIMEOUT, reason))

    def close_idle(self) -> None:
        """Close the connection, on which no request is under way."""
        self.transport.close()
        if self._wire is not None and not self.transport.get_write_buffer_size():
            self._wire.close()  # TLS alone would wait for the client's own end

    def _count_unsent_bytes(self) -> int:
        """Return how much of the answer the kernel did not take yet."""
        wire_bytes = 0 if self._wire is None else self._wire.get_write_buffer_size()
        return int(self.transport.get_write_buffer_size() + wire_bytes)

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
            self._write_refusal(refusal)
            self.loop.call_later(LINGER_S, self.transport.close)
        elif not cycle.more_body:
            cycle.keep_alive = False
        elif cycle is self._active_cycle and not cycle.response_started:
            cycle.disconnected = True
            cycle.message_event.set()
            self._write_refusal(refusal)
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()

    def _write_refusal(self, refusal: RequestRefused) -> None:
        body = build_error_body(refusal.status, "querylift_bad_request", refusal.reason)
        head = f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}\r\ncontent-type: application/json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
