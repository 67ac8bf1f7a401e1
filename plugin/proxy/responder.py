"""Answer one request: forward it to the engine, and send the answer to the client as it arrives."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from querylift.plugin.experiments import TEAMS_HEADER
from querylift.plugin.outcome import OUTCOME_HEADER, Outcome
from querylift.plugin.proxy import rejection
from querylift.plugin.proxy.asgi_types import Receive, Scope, Send
from querylift.plugin.proxy.client_watch import ClientGone, ClientWatch
from querylift.plugin.proxy.forwarded_headers import Headers, expects_continue, read_content_length
from querylift.plugin.proxy.interleaving import ServedAnswer, choose_without_blocking, fetch_two_answers
from querylift.plugin.proxy.search_request import SearchRequest
from querylift.plugin.proxy.shard_report import ShardReport, can_read_answer
from querylift.plugin.proxy.upstream import Reply, Upstream, UpstreamBroken, UpstreamDown

_OUTCOME_HEADER = OUTCOME_HEADER.lower().encode()
_TEAMS_HEADER = TEAMS_HEADER.lower().encode()
_STATUSES_WITHOUT_OUTCOME = frozenset({401, 403})
"""A client that may not search must not learn from `cached` that somebody else searched for these words."""


class AnswerUnseen(Exception):
    """The engine's answer does not show whether it refused a rewrite. Nothing of it was sent to the client."""


class Responder:
    """Serves one request and is then thrown away.

    It holds the start message back until it knows which reply to send. After the start message the reply is fixed.
    `has_engine_failed` says whether the client got an error because the engine did not answer. That error carries
    `outcome_without_engine`, which is set for searches. `on_accepted` is called when the engine answers with a status of
    2xx, before the client gets the answer. `status` is what the client got, or None as long as it got nothing.
    `answer_headers` stand beside the outcome in the answer to a search.
    """

    def __init__(self, upstream: Upstream, receive: Receive, send: Send) -> None:
        self._upstream = upstream
        self._receive = receive
        self._send = send
        self._client_watch = ClientWatch(receive)
        self.outcome_without_engine: Outcome | None = None
        self.has_engine_failed = False
        self.on_accepted: Callable[[], None] | None = None
        self.status: int | None = None
        self.answer_headers: Headers = []
        self._has_started = False
        self._is_body_read = False
        self._has_client_left = False
        self._awaits_continue = False

    def wrap_send(self, wrap: Callable[[Send], Send]) -> None:
        """Let what `wrap` returns send this request's answer. It gets the `send` of before."""
        self._send = wrap(self._send)

    async def read_body(self, headers: Headers, limit_bytes: int) -> tuple[bytes, bool]:
        """Return the request body, and whether it is complete and at most `limit_bytes`.

        Otherwise the rest stays in the stream. Nothing is read of a body that is announced to be larger.
        """
        if (read_content_length(headers) or 0) > limit_bytes:
            return b"", False
        parts = []
        size_bytes = 0
        while not self._is_body_read:
            parts.append(await self._receive_part())
            size_bytes += len(parts[-1])
            if size_bytes > limit_bytes:
                return b"".join(parts), False
        return b"".join(parts), True

    async def forward_stream(
        self, scope: Scope, path: str, *, prefix: bytes = b"", outcome: Outcome | None = None
    ) -> None:
        """Forward a request of any size. `prefix` is the part of its body that was already read."""
        headers: Headers = scope["headers"]
        body = self._iterate_body(prefix) if prefix or _has_body(headers) else None
        if body is None:
            await self._receive_part()
        else:
            self._awaits_continue = any(name == b"expect" and expects_continue(value) for name, value in headers)
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
        async with self._report_engine_failures():
            async with await self._upstream.send(
                request.method, request.path, request.query_string, request.headers, request.raw_body
            ) as reply:
                if is_msearch:
                    held = await reply.read_up_to(rejection.MAX_HELD_BYTES)
                    accepted_positions = rejection.find_accepted_searches(held, reply.encoding, rejected_positions)
                else:
                    report = ShardReport(reply.encoding)
                    held = await reply.read_until(report.add_bytes, rejection.MAX_HELD_BYTES)
                    accepted_positions = [0] if reply.status < 400 and not report.shows_rejection else []
                await self._send_reply(
                    reply, rejection.REJECTED if accepted_positions else rejection.ORIGINAL_FAILS, held
                )
                return accepted_positions
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
        the rewrites in an `_msearch`, and None for a single search, whose only position is 0. Raises AnswerUnseen.
        """
        query_string, headers = request.adapt_to_new_body()
        async with self._report_engine_failures():
            async with await self._upstream.send(request.method, request.path, query_string, headers, body) as reply:
                return await self._send_reply_unless_rejected(reply, outcome, rewritten_positions)
        return []

    async def _send_reply_unless_rejected(
        self, reply: Reply, outcome: Outcome, rewritten_positions: Sequence[int] | None
    ) -> list[int]:
        """Return the rejected positions, as `send_rewrite` does."""
        if reply.status in rejection.REJECTION_STATUSES:
            return list(rewritten_positions or [0])
        if reply.status >= 400:
            await self._send_reply(reply, outcome, b"")
            return []
        if not can_read_answer(reply.headers, reply.encoding):
            raise AnswerUnseen
        if rewritten_positions is None:
            report = ShardReport(reply.encoding)
            held = await reply.read_until(report.add_bytes, rejection.MAX_HELD_BYTES)
            is_seen = report.is_seen or reply.is_at_end
            rejected_positions = [0] if report.shows_rejection else []
        else:
            held = await reply.read_up_to(rejection.MAX_HELD_BYTES)
            is_seen = reply.is_at_end
            rejected_positions = rejection.find_rejected_searches(held, reply.encoding, rewritten_positions)
        if not is_seen and not rejected_positions:
            raise AnswerUnseen
        if not rejected_positions:
            await self._send_reply(reply, outcome, held)
        return rejected_positions

    async def send_interleaved(
        self, request: SearchRequest, body: bytes, outcome: Outcome, *, seed: str, wait_s: float
    ) -> ServedAnswer | None:
        """Send both searches to the engine, and merge their hits for the client. Return None when the client got an error.

        When that is impossible, the answer of one of them goes to the client, and the outcome says which.
        """
        async with self._report_engine_failures():
            async with fetch_two_answers(self._upstream, request, body, wait_s=wait_s) as answers:
                served = await choose_without_blocking(answers, outcome, seed=seed)
                if served.merged is None:
                    await self._send_reply(served.answer.reply, served.outcome, served.answer.held)
                else:
                    self.answer_headers.append((_TEAMS_HEADER, served.merged.teams.encode()))
                    await self._start_answer(served.answer.reply.status, served.merged.headers, served.outcome)
                    await self._send({"type": "http.response.body", "body": served.merged.body, "more_body": False})
                return served
        return None

    async def _forward(
        self,
        method: str,
        path: str,
        query_string: str,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None,
        outcome: Outcome | None,
    ) -> int:
        """Forward a request, send the engine's reply, and return its status, or 502 when it has none."""
        async with self._report_engine_failures():
            async with await self._upstream.send(method, path, query_string, headers, body) as reply:
                await self._send_reply(reply, outcome, await reply.read_all() if reply.is_small else b"")
                return reply.status
        return 502

    async def _send_reply(self, reply: Reply, outcome: Outcome | None, held: bytes) -> None:
        """Send the reply to the client: first the part of its body that was `held` back, then the rest."""
        await self._start_answer(reply.status, reply.headers, outcome)
        if held or reply.is_at_end:
            has_more = not reply.is_at_end
            await self._send({"type": "http.response.body", "body": held, "more_body": has_more})
            if not has_more:
                return
        async for chunk in reply.iterate_chunks():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start_answer(self, status: int, headers: Headers, outcome: Outcome | None) -> None:
        """Send the start of an answer of the engine, with what Querylift says about it."""
        if outcome is not None and status not in _STATUSES_WITHOUT_OUTCOME:
            headers = [*headers, (_OUTCOME_HEADER, outcome.format_header().encode()), *self.answer_headers]
        if self._awaits_continue:  # the client may send its body now, or never
            headers = [*headers, (b"connection", b"close")]
        self.status = status
        self._has_started = True
        if 200 <= status < 300 and self.on_accepted is not None:
            self.on_accepted()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send_json(self, status: int, body: bytes, outcome: Outcome | None = None) -> None:
        """Send an answer that does not come from the engine."""
        self.status = status
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if outcome is not None:
            headers.append((_OUTCOME_HEADER, outcome.format_header().encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    @contextlib.asynccontextmanager
    async def _report_engine_failures(self) -> AsyncIterator[None]:
        """Send an error when the engine does not answer. A reply that has started can only be cut, by the server."""
        try:
            with self._client_watch:
                yield
                return
        except UpstreamDown as error:
            failure = error
        except UpstreamBroken:
            if self._has_started:
                raise
            failure = UpstreamDown(502, "the engine broke off in the middle of its answer")
        if self._has_client_left:
            raise ClientGone from failure
        self.has_engine_failed = True
        await self.send_json(failure.status, failure.body, self.outcome_without_engine)

    async def _receive_part(self) -> bytes:
        """Return the next part of the request body. After the last, the client is watched. Raises ClientGone."""
        self._awaits_continue = False
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._has_client_left = True
            raise ClientGone
        if not message.get("more_body", False):
            self._is_body_read = True
            self._client_watch.allow()
        body: bytes = message.get("body", b"")
        return body

    async def _iterate_body(self, prefix: bytes) -> AsyncIterator[bytes]:
        if prefix:
            yield prefix
        while not self._is_body_read:
            if part := await self._receive_part():
                yield part


def _has_body(headers: Headers) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") and value != b"0" for name, value in headers)
