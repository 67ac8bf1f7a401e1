"""The ASGI application between clients and the engine.

A request that is no search streams through. A search is read, expanded where the rules allow, and forwarded; whenever
anything is in doubt, the bytes that came are the bytes that go on.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace

from querylift.plugin import dsl
from querylift.plugin.broker import Expander
from querylift.plugin.flow import (
    MultiSearch,
    Refused,
    Result,
    Rules,
    Search,
    join_msearch,
    run_async,
    search_flow,
    split_msearch,
    summary,
)
from querylift.plugin.outcome import Outcome
from querylift.plugin.proxy import routes, search_request
from querylift.plugin.proxy.journal import Journal
from querylift.plugin.proxy.responder import ClientGone, Receive, Responder, Scope, Send
from querylift.plugin.proxy.search_request import Request
from querylift.plugin.proxy.upstream import Upstream, UpstreamBroken
from querylift.plugin.settings import Settings

_log = logging.getLogger("querylift")

NO_PARAMS = dsl.Params()
_REJECTED = Outcome("error", "rejected")
_BAD_TARGET = json.dumps({"error": "the request's target does not begin with /", "status": 400}).encode()


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
        responder = Responder(self.upstream, receive, send)
        try:
            if not path.startswith("/"):  # or the client would choose the host: http://engine:9200*@elsewhere/
                await responder.json(400, _BAD_TARGET)
            elif (route := routes.match(scope["method"], path)) is None:
                await responder.stream(scope, path)
            else:
                await self._search(responder, scope, route, path)
        except ClientGone:
            return
        except UpstreamBroken as broken:
            # Returning without the end of the body makes the server cut the connection, so that the client sees a
            # broken answer and not a short one.
            _log.warning("the engine broke off in the middle of an answer: %s", broken)
            await responder.broken()

    async def _search(self, responder: Responder, scope: Scope, route: routes.Route, path: str) -> None:
        started_s = self._clock()
        body, complete = await responder.read(self.settings.max_body_bytes)
        if not complete:
            outcome = self._passed(route.index, Outcome("skipped", "too-large"))
            return await responder.stream(scope, path, prefix=body, outcome=outcome)
        if route.index is not None and route.api != "_msearch" and (reason := self.rules.refusal(route.index)):
            return await responder.whole(scope, path, body, self._passed(route.index, Outcome("skipped", reason)))
        found = search_request.read(scope, route, path, body, self.settings.max_body_bytes)
        if isinstance(found, Outcome):
            return await responder.whole(scope, path, body, self._passed(route.index, found))
        search = self._many if route.api == "_msearch" else self._one
        await search(responder, found, started_s)

    def _passed(self, index: str | None, outcome: Outcome) -> Outcome:
        """Count a search that was not looked into."""
        self.journal.search(index, Result(None, outcome), 0.0)
        return outcome

    async def _one(self, responder: Responder, found: Request, started_s: float) -> None:
        index = found.route.index
        params = NO_PARAMS
        if found.query_string:
            params = dsl.Params.from_mapping(routes.parameters(found.query_string))
        search = Search(index, found.body, params, self._deadline_s(started_s))
        result = await self.expand(search)
        added_s = self._clock() - started_s
        if result.body is None:
            self.journal.search(index, result, added_s)
            await responder.original(found, result.outcome)
        elif not await responder.rewritten(found, result.body, result.outcome):
            self.journal.search(index, result, added_s)
        else:
            self.journal.search(index, replace(result, outcome=_REJECTED), added_s)
            if await responder.original(found, _REJECTED) < 400:  # else it was the search itself that is wrong
                self._pause(index)

    async def _many(self, responder: Responder, found: Request, started_s: float) -> None:
        try:
            multi = split_msearch(found.body, found.route.index, deadline_s=self._deadline_s(started_s))
        except (dsl.Skip, Refused) as left:
            outcome = self._passed(found.route.index, Outcome("skipped", left.reason))
            await responder.original(found, outcome)
            return
        results = await self._expand_all(multi)
        added_s = self._clock() - started_s
        outcome = summary(results)
        changed = [i for i, result in enumerate(results) if result.body is not None]
        refused = []
        if not changed:
            await responder.original(found, outcome)
        elif refused := await responder.rewritten(found, join_msearch(multi, results), outcome, changed=changed):
            for i in await responder.original_many(found, _REJECTED, refused):
                self._pause(multi.searches[i].index)
        for i, (search, result) in enumerate(zip(multi.searches, results, strict=True)):
            became = _REJECTED if refused and i in changed else result.outcome
            self.journal.search(search.index, replace(result, outcome=became), added_s)

    async def _expand_all(self, multi: MultiSearch) -> list[Result]:
        return await asyncio.gather(*(self.expand(search) for search in multi.searches))

    def _deadline_s(self, started_s: float) -> float:
        return started_s + self.settings.budget_ms / 1000

    def _pause(self, index: str | None) -> None:
        self.rules.pause(index)
        self.journal.refused(index)

    async def expand(self, search: Search) -> Result:
        """What to send for `search`. Never raises, never later than its deadline."""
        return await run_async(search_flow(search, self.rules), self.expander.answer)
