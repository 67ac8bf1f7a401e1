"""Answer one request: forward it to the engine, and send the answer to the client as it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from querylift.plugin.outcome import OUTCOME_HEADER, Outcome
from querylift.plugin.proxy import rejection
from querylift.plugin.proxy.asgi_types import Receive, Scope, Send
from querylift.plugin.proxy.client_watch import ClientGone, ClientWatch
from querylift.plugin.proxy.search_request import SearchRequest
from querylift.plugin.proxy.upstream import Headers, Reply, Upstream, UpstreamDown

_OUTCOME_HEADER = OUTCOME_HEADER.lower().encode()
REJECTED = Outcome("error", "rejected")
ORIGINAL_FAILS = Outcome("skipped", "original-fails")


class Responder:
    """Serves one request and is then thrown away.

    It holds the start message back until it knows which reply to send. After the start message the reply is fixed.
    """

    def __init__(self, upstream: Upstream, receive: Receive, send: Send) -> None:
        self._upstream = upstream
        self._receive = receive
        self._send = send
        self._client_watch = ClientWatch(receive)
        self._has_started = False

    async def report_broken_engine(self) -> None:
        """Send an error, unless the reply has started. A started reply can only be cut, which the server does."""
        if not self._has_started:
            error = UpstreamDown(502, "the engine broke off in the middle of its answer")
            await self.send_json(error.status, error.body)

    async def read_body(self, limit_bytes: int) -> tuple[bytes, bool]:
        """Return the request body and whether it is complete. Past `limit_bytes`, the rest stays in the stream."""
        parts = []
        size_bytes = 0
        while True:
            part, has_more = await self._receive_part()
            parts.append(part)
            size_bytes += len(part)
            if not has_more:
                return b"".join(parts), True
            if size_bytes > limit_bytes:
                return b"".join(parts), False

    async def forward_stream(
        self, scope: Scope, path: str, *, prefix: bytes = b"", outcome: Outcome | None = None
    ) -> None:
        """Forward a request of any size. `prefix` is the part of its body that was already read."""
        headers: Headers = scope["headers"]
        body = self._iterate_body(prefix) if prefix or _has_body(headers) else None
        if body is None:
            await self._receive_part()
        await self._forward(scope["method"], path, scope["query_string"].decode("latin-1"), headers, body, outcome)

    async def forward_body(self, scope: Scope, path: str, body: bytes, outcome: Outcome) -> None:
        """Forward a request unchanged, after its whole body was read."""
        query_string = scope["query_string"].decode("latin-1")
        await self._forward(scope["method"], path, query_string, scope["headers"], body, outcome)

    async def send_original(self, request: SearchRequest, outcome: Outcome) -> None:
        """Send the original search."""
        await self._forward(
            request.method, request.path, request.query_string, request.headers, request.raw_body, outcome
        )

    async def send_original_after_rejection(
        self, request: SearchRequest, rejected_positions: Sequence[int], *, is_msearch: bool
    ) -> list[int]:
        """Send the original of a rejected rewrite, and return those positions that the engine answers in full now.

        The outcome in the header says whether the expansion was at fault, or the original search fails as well.
        """
        try:
            with self._client_watch:
                async with await self._upstream.send(
                    request.method, request.path, request.query_string, request.headers, request.raw_body
                ) as reply:
                    held = await reply.read_up_to(rejection.MAX_HELD_BYTES if is_msearch else rejection.HEAD_BYTES)
                    if is_msearch:
                        accepted_positions = rejection.find_accepted_searches(held, reply.encoding, rejected_positions)
                    else:
                        is_accepted = reply.status < 400 and not rejection.has_failed_shard(held, reply.encoding)
                        accepted_positions = [0] if is_accepted else []
                    await self._send_reply(reply, REJECTED if accepted_positions else ORIGINAL_FAILS, held)
                    return accepted_positions
        except UpstreamDown as error:
            await self.send_json(error.status, error.body, REJECTED)
        return []

    async def send_rewrite(
        self,
        request: SearchRequest,
        body: bytes,
        outcome: Outcome,
        *,
        rewritten_positions: Sequence[int] | None = None,
    ) -> list[int]:
        """Send the rewritten search, and return the positions that the engine rejected.

        [] means that the client has its answer. Otherwise nothing was sent to the client yet. `rewritten_positions` are
        the rewrites in an `_msearch`, and None for a single search, whose only position is 0.
        """
        query_string, headers = request.adapt_to_new_body()
        try:
            with self._client_watch:
                async with await self._upstream.send(
                    request.method, request.path, query_string, headers, body
                ) as reply:
                    return await self._send_reply_unless_rejected(reply, outcome, rewritten_positions)
        except UpstreamDown as error:
            await self.send_json(error.status, error.body, outcome)
        return []

    async def _send_reply_unless_rejected(
        self, reply: Reply, outcome: Outcome, rewritten_positions: Sequence[int] | None
    ) -> list[int]:
        """Return the rejected positions, as `send_rewrite` does."""
        if reply.status in rejection.REJECTION_STATUSES:
            return list(rewritten_positions or [0])
        if reply.is_small:
            held = await reply.read_all()
        else:
            is_single = rewritten_positions is None
            held = await reply.read_up_to(rejection.HEAD_BYTES if is_single else rejection.MAX_HELD_BYTES)
        if rewritten_positions is not None:
            rejected_positions = rejection.find_rejected_searches(held, reply.encoding, rewritten_positions)
        else:
            rejected_positions = [0] if rejection.has_failed_shard(held, reply.encoding) else []
        if not rejected_positions:
            await self._send_reply(reply, outcome, held)
        return rejected_positions

    async def _forward(
        self,
        method: str,
        path: str,
        query_string: str,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None,
        outcome: Outcome | None,
    ) -> None:
        """Forward a request, and send the engine's reply."""
        try:
            with self._client_watch:
                async with await self._upstream.send(method, path, query_string, headers, body) as reply:
                    await self._send_reply(reply, outcome, await reply.read_all() if reply.is_small else b"")
        except UpstreamDown as error:
            await self.send_json(error.status, error.body, outcome)

    async def _send_reply(self, reply: Reply, outcome: Outcome | None, held: bytes) -> None:
        """Send the reply to the client: first the part of its body that was `held` back, then the rest."""
        headers = reply.headers
        if outcome is not None:
            headers = [*headers, (_OUTCOME_HEADER, outcome.format_header().encode())]
        self._has_started = True
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        if held or reply.is_at_end:
            has_more = not reply.is_at_end
            await self._send({"type": "http.response.body", "body": held, "more_body": has_more})
            if not has_more:
                return
        async for chunk in reply.iterate_chunks():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send_json(self, status: int, body: bytes, outcome: Outcome | None = None) -> None:
        """Send an answer that does not come from the engine."""
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if outcome is not None:
            headers.append((_OUTCOME_HEADER, outcome.format_header().encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _receive_part(self) -> tuple[bytes, bool]:
        """Return the next part of the request body and whether more follows. After the last, the client is watched."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        has_more = bool(message.get("more_body", False))
        if not has_more:
            self._client_watch.allow()
        return message.get("body", b""), has_more

    async def _iterate_body(self, prefix: bytes) -> AsyncIterator[bytes]:
        if prefix:
            yield prefix
        has_more = True
        while has_more:
            part, has_more = await self._receive_part()
            if part:
                yield part


def _has_body(headers: Headers) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") and value != b"0" for name, value in headers)
