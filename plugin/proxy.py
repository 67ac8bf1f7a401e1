"""The ASGI application between clients and the engine.

A request that is no search streams through. A search is read, expanded where the rules allow, and forwarded; whenever
anything is in doubt, the bytes that came are the bytes that go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from plugin import dsl, routes
from plugin.expander import Expander
from plugin.flow import MultiSearch, Result, Rules, Search, join_msearch, run_async, search_flow, split_msearch, summary
from plugin.journal import Journal
from plugin.outcome import HEADER, Outcome
from plugin.settings import Settings
from plugin.upstream import Headers, Reply, Upstream, UpstreamBroken, UpstreamDown

_log = logging.getLogger("querylift")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_HEADER = HEADER.lower().encode()
_OFF = (b"off", b"false", b"0")
_REFUSALS = frozenset({400, 500})
"""Statuses with which an engine refuses a query as such. Not 429 and 503: sending more would add to its load."""
MAX_HELD_BYTES = 8_388_608
"""How much of an `_msearch` answer is held back to see whether the engine refused one of its searches."""
NO_PARAMS = dsl.Params()
WATCH_AFTER_S = 0.05
"""How long a search runs before it is watched whether its client is still there."""


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
    search_body_in_url: bool = False


class Proxy:
    """ASGI application. `expander`, `upstream` and `journal` are started and closed by whoever made them."""

    def __init__(
        self,
        settings: Settings,
        *,
        expander: Expander,
        upstream: Upstream,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self.expander = expander
        self.upstream = upstream
        self.journal = journal
        self._clock = clock
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Take new settings for rules, budget and limits; searches under way keep theirs."""
        self.settings = settings
        self.rules = Rules(settings, clock=self._clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["raw_path"].decode("latin-1")
        route = routes.match(scope["method"], path)
        responder = _Responder(self.upstream, receive, send)
        try:
            if route is None:
                await responder.stream(scope, path)
            else:
                await self._search(responder, scope, route, path)
        except ClientGone:
            return
        except UpstreamBroken as broken:
            # Returning without the end of the body makes the server cut the connection, so that the client sees a
            # broken answer and not a short one.
            _log.warning("the engine broke off in the middle of an answer: %s", broken)

    async def _search(self, responder: _Responder, scope: Scope, route: routes.Route, path: str) -> None:
        started_s = self._clock()
        headers: Headers = scope["headers"]
        prefix, complete = await responder.read(self.settings.max_body_bytes)
        if not complete:
            return await responder.stream(scope, path, prefix=prefix, outcome=Outcome("skipped", "too-large"))
        request = _request(scope, route, path, prefix, self.settings.max_body_bytes)
        if isinstance(request, Outcome):
            self.journal.search(route.index, Result(None, request), 0.0)
            return await responder.whole(scope["method"], path, scope["query_string"], headers, prefix, request)
        deadline_s = started_s + self.settings.budget_ms / 1000
        if route.api == "_msearch":
            await self._many(responder, request, started_s, deadline_s)
        else:
            await self._one(responder, request, started_s, deadline_s)

    async def _one(self, responder: _Responder, request: Request, started_s: float, deadline_s: float) -> None:
        query_string = request.query_string
        params = dsl.Params.from_mapping(routes.parameters(query_string)) if query_string else NO_PARAMS
        search = Search(request.route.index, request.body, params, deadline_s)
        result = await self.expand(search)
        self.journal.search(request.route.index, result, self._clock() - started_s)
        if result.body is None:
            await responder.original(request, result.outcome)
            return
        if await responder.rewritten(request, result.body, result.outcome):
            status = await responder.original(request, Outcome("error", "rejected"))
            if status < 400:  # otherwise it was the search itself that the engine did not like
                self._pause(request.route.index)

    async def _many(self, responder: _Responder, request: Request, started_s: float, deadline_s: float) -> None:
        try:
            multi = split_msearch(request.body, request.route.index, deadline_s=deadline_s)
        except dsl.Skip as skip:
            await responder.original(request, Outcome("skipped", skip.reason))
            return
        results = await self._expand_all(multi)
        for (_, search), result in zip(multi.searches, results.values(), strict=True):
            self.journal.search(search.index, result, self._clock() - started_s)
        outcome = summary(list(results.values()))
        changed = [i for i, result in enumerate(results.values()) if result.body is not None]
        if not changed:
            await responder.original(request, outcome)
        elif await responder.rewritten(request, join_msearch(multi, results), outcome, changed=changed):
            for i in changed:
                self._pause(multi.searches[i][1].index)
            await responder.original(request, Outcome("error", "rejected"))

    async def _expand_all(self, multi: MultiSearch) -> dict[int, Result]:
        results = await asyncio.gather(*(self.expand(search) for _, search in multi.searches))
        return {line: result for (line, _), result in zip(multi.searches, results, strict=True)}

    def _pause(self, index: str | None) -> None:
        self.rules.pause(index)
        self.journal.refused(index)

    async def expand(self, search: Search) -> Result:
        """What to send for `search`. Never raises, never later than its deadline."""
        return await run_async(search_flow(search, self.rules), self.expander.answer)


def _request(scope: Scope, route: routes.Route, path: str, raw: bytes, limit: int) -> Request | Outcome:
    """The search request, or the outcome of one that is not read: switched off, or of an unknown encoding."""
    headers: Headers = scope["headers"]
    first = dict(reversed(headers))  # the first of each name, where one is repeated
    query_string = scope["query_string"].decode("latin-1")
    if first.get(_HEADER, b"").strip().lower() in _OFF:
        return Outcome("skipped", "off")
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


def _from_url(scope: Scope, route: routes.Route, path: str, query_string: str) -> Request | Outcome:
    parameters = routes.parameters(query_string)
    if not routes.readable_media_type(parameters.get("source_content_type", "")):
        return Outcome("skipped", "encoding")
    body = parameters.get("source", "").encode("utf-8", "surrogatepass")
    return Request(route, scope["method"], path, query_string, scope["headers"], b"", body, search_body_in_url=True)


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


def _refuses_one(held: bytes, changed: Iterable[int]) -> bool:
    """Whether an expanded search of an `_msearch` was refused. Documents may hold such words too, so they are read."""
    if not any(b'"status":%d' % status in held for status in _REFUSALS):
        return False
    try:
        answers = json.loads(held)["responses"]
        return any(answers[i].get("status") in _REFUSALS for i in changed)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False  # longer than what was held, or no answer of a search engine


def _has_body(headers: Headers) -> bool:
    return any(key in (b"content-length", b"transfer-encoding") and value != b"0" for key, value in headers)


class ClientGone(Exception):
    """The client closed its connection."""


class _Responder:
    """Answers one request. Holds the start message back until the reply to send is known; then it cannot be changed."""

    def __init__(self, upstream: Upstream, receive: Receive, send: Send) -> None:
        self._upstream = upstream
        self._receive = receive
        self._send = send
        self._read_all = False

    async def read(self, limit: int) -> tuple[bytes, bool]:
        """The request body, and whether that is all of it: past `limit` bytes it is left in the stream."""
        parts = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if not message.get("more_body", False):
                self._read_all = True
                return b"".join(parts), True
            if size > limit:
                return b"".join(parts), False

    async def stream(self, scope: Scope, path: str, *, prefix: bytes = b"", outcome: Outcome | None = None) -> None:
        """Pass a request of any size through, `prefix` being what was already read of it."""
        headers: Headers = scope["headers"]
        body = self._rest(prefix) if _has_body(headers) or prefix else None
        await self._exchange(scope["method"], path, scope["query_string"].decode("latin-1"), headers, body, outcome)

    async def whole(
        self, method: str, path: str, query_string: bytes, headers: Headers, body: bytes, outcome: Outcome
    ) -> None:
        """Pass a request on whose body was read whole, as it came."""
        await self._exchange(method, path, query_string.decode("latin-1"), headers, body, outcome)

    async def original(self, request: Request, outcome: Outcome) -> int:
        """Send the search as it came, and return the status of the answer."""
        return await self._exchange(
            request.method, request.path, request.query_string, request.headers, request.raw, outcome
        )

    async def rewritten(
        self, request: Request, body: bytes, outcome: Outcome, *, changed: Sequence[int] | None = None
    ) -> bool:
        """Send the expanded search. True where the engine refused it and nothing was answered yet.

        `changed` are the positions of the expanded searches in an `_msearch`.
        """
        headers = request.headers
        if request.body is not request.raw:
            headers = [(k, v) for k, v in headers if k != b"content-encoding"]
        query_string = request.query_string
        if request.search_body_in_url:
            query_string = routes.without_source(query_string)
            headers = [(k, v) for k, v in headers if k != b"content-type"] + [(b"content-type", b"application/json")]
        try:
            with self._watch():
                reply = await self._upstream.send(request.method, request.path, query_string, headers, body)
                async with reply:
                    return await self._accept(reply, outcome, changed)
        except UpstreamDown as down:
            await self._unreachable(down, outcome)
        return False

    async def _accept(self, reply: Reply, outcome: Outcome, changed: Sequence[int] | None) -> bool:
        if reply.status in _REFUSALS:
            return True
        held = b"" if changed is None else await reply.read_up_to(MAX_HELD_BYTES)
        if changed is not None and _refuses_one(held, changed):
            return True
        await self._answer(reply, outcome, held)
        return False

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
            with self._watch():
                async with await self._upstream.send(method, path, query_string, headers, body) as reply:
                    await self._answer(reply, outcome, b"")
                    return reply.status
        except UpstreamDown as down:
            await self._unreachable(down, outcome)
            return down.status

    async def _answer(self, reply: Reply, outcome: Outcome | None, held: bytes) -> None:
        headers = reply.headers
        if outcome is not None:
            headers = [*headers, (_HEADER, outcome.header().encode())]
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        if not held and reply.is_small:
            body = await reply.read()
            return await self._send({"type": "http.response.body", "body": body, "more_body": False})
        if held:
            await self._send({"type": "http.response.body", "body": held, "more_body": True})
        async for chunk in reply.chunks():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _unreachable(self, down: UpstreamDown, outcome: Outcome | None) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(down.body)).encode())]
        if outcome is not None:
            headers.append((_HEADER, outcome.header().encode()))
        await self._send({"type": "http.response.start", "status": down.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": down.body, "more_body": False})

    def _watch(self) -> contextlib.AbstractContextManager[None]:
        """Drop the engine's work when the client goes away. Only once the request is read: both read one stream."""
        return _Watch(self._receive) if self._read_all else contextlib.nullcontext()

    async def _rest(self, prefix: bytes) -> AsyncIterator[bytes]:
        if prefix:
            yield prefix
        while not self._read_all:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self._read_all = not message.get("more_body", False)
            if message.get("body"):
                yield message["body"]


class _Watch:
    """Cancels the task that entered it when the client goes away meanwhile, and turns that into ClientGone.

    It begins to look after WATCH_AFTER_S: most answers are there sooner, and a task for each would cost a tenth of our
    speed.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> None:
        self._worker = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and kind is asyncio.CancelledError and self._worker is not None and self._worker.uncancel() == 0:
            raise ClientGone from None

    def _begin(self) -> None:
        self._watcher = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        await self._receive()
        if self._worker is not None:
            self._gone = True
            self._worker.cancel()
