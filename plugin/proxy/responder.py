"""Answers one request: to the engine, and back to the client as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

from querylift.plugin.outcome import HEADER, Outcome
from querylift.plugin.proxy import rejection
from querylift.plugin.proxy.search_request import Request
from querylift.plugin.proxy.upstream import Headers, Reply, Upstream, UpstreamDown

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_HEADER = HEADER.lower().encode()
WATCH_AFTER_S = 0.05
"""How long a request runs before it is watched whether its client is still there."""


class ClientGone(Exception):
    """The client closed its connection."""


class Responder:
    """Throw-away. Holds the start message back until the reply to send is known; then it cannot be changed."""

    def __init__(self, upstream: Upstream, receive: Receive, send: Send) -> None:
        self._upstream = upstream
        self._receive = receive
        self._send = send
        self._watch = _Watch(receive)
        self._started = False

    async def broken(self) -> None:
        """The engine broke off. Before the start message that can be said; after it, only the connection can be cut."""
        if not self._started:
            down = UpstreamDown(502, "the engine broke off in the middle of its answer")
            await self.json(down.status, down.body)

    async def read(self, limit: int) -> tuple[bytes, bool]:
        """The request body, and whether that is all of it: past `limit` bytes it is left in the stream."""
        parts = []
        size = 0
        while True:
            part, more = await self._next()
            parts.append(part)
            size += len(part)
            if not more:
                return b"".join(parts), True
            if size > limit:
                return b"".join(parts), False

    async def stream(self, scope: Scope, path: str, *, prefix: bytes = b"", outcome: Outcome | None = None) -> None:
        """Pass a request of any size through, `prefix` being what was already read of it."""
        headers: Headers = scope["headers"]
        body = self._rest(prefix) if prefix or _has_body(headers) else None
        if body is None:
            await self._next()
        await self._exchange(scope["method"], path, scope["query_string"].decode("latin-1"), headers, body, outcome)

    async def whole(self, scope: Scope, path: str, body: bytes, outcome: Outcome) -> None:
        """Pass a request on whose body was read whole, as it came."""
        query_string = scope["query_string"].decode("latin-1")
        await self._exchange(scope["method"], path, query_string, scope["headers"], body, outcome)

    async def original(self, request: Request, outcome: Outcome) -> int:
        """Send the search as it came, and return the status of the answer."""
        return await self._exchange(
            request.method, request.path, request.query_string, request.headers, request.raw, outcome
        )

    async def original_many(self, request: Request, outcome: Outcome, positions: Sequence[int]) -> list[int]:
        """Send an `_msearch` as it came, and return which of `positions` were answered in full."""
        try:
            with self._watch:
                async with await self._upstream.send(
                    request.method, request.path, request.query_string, request.headers, request.raw
                ) as reply:
                    held = await reply.read_up_to(rejection.MAX_HELD_BYTES)
                    await self._answer(reply, outcome, held)
                    return rejection.taken(held, reply.encoding, positions)
        except UpstreamDown as down:
            await self._unreachable(down, outcome)
        return []

    async def rewritten(
        self, request: Request, body: bytes, outcome: Outcome, *, changed: Sequence[int] | None = None
    ) -> list[int]:
        """Send the expanded search; where the engine refused it, nothing is answered yet.

        `changed` are the positions of the expanded searches in an `_msearch`, None for a single search. The result is
        the positions that were refused, [0] for a single search, [] where the answer was sent.
        """
        query_string, headers = request.for_rewritten()
        try:
            with self._watch:
                async with await self._upstream.send(
                    request.method, request.path, query_string, headers, body
                ) as reply:
                    return await self._accept(reply, outcome, changed)
        except UpstreamDown as down:
            await self._unreachable(down, outcome)
        return []

    async def _accept(self, reply: Reply, outcome: Outcome, changed: Sequence[int] | None) -> list[int]:
        if reply.status in rejection.STATUSES:
            return list(changed or [0])
        if reply.is_small:
            held = await reply.read()
        else:
            held = await reply.read_up_to(rejection.HEAD_BYTES if changed is None else rejection.MAX_HELD_BYTES)
        if changed is not None:
            refused = rejection.refused(held, reply.encoding, changed)
        else:
            refused = [0] if rejection.shards_failed(held, reply.encoding) else []
        if not refused:
            await self._answer(reply, outcome, held)
        return refused

    async def _exchange(
        self,
        method: str,
        path: str,
        query_string: str,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None,
        outcome: Outcome | None,
    ) -> int:
        try:
            with self._watch:
                async with await self._upstream.send(method, path, query_string, headers, body) as reply:
                    await self._answer(reply, outcome, await reply.read() if reply.is_small else b"")
                    return reply.status
        except UpstreamDown as down:
            await self._unreachable(down, outcome)
            return down.status

    async def _answer(self, reply: Reply, outcome: Outcome | None, held: bytes) -> None:
        """Send the reply: what is `held` of its body, and what is still to come."""
        headers = reply.headers
        if outcome is not None:
            headers = [*headers, (_HEADER, outcome.header().encode())]
        self._started = True
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        if held or reply.at_end:
            more = not reply.at_end
            await self._send({"type": "http.response.body", "body": held, "more_body": more})
            if not more:
                return
        async for chunk in reply.chunks():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _unreachable(self, down: UpstreamDown, outcome: Outcome | None) -> None:
        await self.json(down.status, down.body, outcome)

    async def json(self, status: int, body: bytes, outcome: Outcome | None = None) -> None:
        """An answer of our own."""
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if outcome is not None:
            headers.append((_HEADER, outcome.header().encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _next(self) -> tuple[bytes, bool]:
        """The next part of the request body and whether more follows; after the last, the client is watched."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more = bool(message.get("more_body", False))
        if not more:
            self._watch.arm()
        return message.get("body", b""), more

    async def _rest(self, prefix: bytes) -> AsyncIterator[bytes]:
        if prefix:
            yield prefix
        more = True
        while more:
            part, more = await self._next()
            if part:
                yield part


def _has_body(headers: Headers) -> bool:
    return any(key in (b"content-length", b"transfer-encoding") and value != b"0" for key, value in headers)


class _Watch:
    """Cancels the task that entered it when the client goes away meanwhile, and turns that into ClientGone.

    It looks only once it is armed, as request body and disconnection come through one stream, and after WATCH_AFTER_S:
    most answers are there sooner, and a task for each would cost a tenth of our speed.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._worker: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._armed = False
        self._gone = False

    def arm(self) -> None:
        """The request is read: from now on the stream can only say that the client left."""
        self._armed = True
        if self._worker is not None:
            self._start()

    def __enter__(self) -> None:
        self._worker = asyncio.current_task()
        if self._armed:
            self._start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        worker, self._worker = self._worker, None
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and kind is asyncio.CancelledError and worker is not None and worker.uncancel() == 0:
            raise ClientGone from None

    def _start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    def _begin(self) -> None:
        self._watcher = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        await self._receive()
        if self._worker is not None:
            self._gone = True
            self._worker.cancel()
