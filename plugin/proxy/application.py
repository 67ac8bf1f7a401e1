"""The ASGI application between clients and the engine.

A request that is not a search is streamed through. A search is read, expanded where the rules allow it, and forwarded.
In case of doubt, the engine gets exactly the bytes that the client sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from querylift.plugin import dsl
from querylift.plugin.broker import Answer, Question
from querylift.plugin.brokers import ExpansionBrokers
from querylift.plugin.flow import (
    ExpansionRules,
    FlowResult,
    Search,
    run_flow_async,
    search_flow,
    summarize_outcomes,
)
from querylift.plugin.multi_search import MultiSearch, join_msearch, split_msearch
from querylift.plugin.outcome import Outcome, Skip
from querylift.plugin.pit_memory import PitMemory
from querylift.plugin.proxy import routes
from querylift.plugin.proxy.asgi_types import Receive, Scope, Send
from querylift.plugin.proxy.body_thread import MAX_INLINE_BYTES, BodyThread
from querylift.plugin.proxy.client_watch import ClientGone
from querylift.plugin.proxy.error_answer import build_error_body
from querylift.plugin.proxy.interleaving import can_interleave_request
from querylift.plugin.proxy.journal import Journal
from querylift.plugin.proxy.node_addresses import AddressWriter, ask_for_plain_answer, asks_for_addresses
from querylift.plugin.proxy.pit_answers import PitAnswerReader
from querylift.plugin.proxy.query_records.record import SearchOrigin
from querylift.plugin.proxy.rejection import ORIGINAL_FAILS, REJECTED
from querylift.plugin.proxy.responder import AnswerUnseen, Responder
from querylift.plugin.proxy.search_names import name_searches
from querylift.plugin.proxy.search_request import SearchRequest, read_search_request
from querylift.plugin.proxy.upstream import Upstream, UpstreamBroken
from querylift.plugin.settings import Settings

if TYPE_CHECKING:
    from querylift.plugin.proxy.tracing import SearchTracer

_log = logging.getLogger("querylift")

NO_URL_PARAMETERS = dsl.UrlParameters()
_ENGINE_DOWN = Outcome("error", "engine")
_UNSEEN = Outcome("skipped", "unseen")
_BAD_TARGET = build_error_body(400, "querylift_bad_request", "the request's target does not begin with /")
_LEAVING_TARGET = build_error_body(
    400, "querylift_bad_request", "the request's path has .. in it and would leave the engine's URL; send it without .."
)


class Proxy:
    """ASGI application. Whoever makes the parts that it is given also starts and closes them.

    `is_draining` says that the process was told to stop, and only finishes its searches.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        brokers: ExpansionBrokers,
        upstream: Upstream,
        journal: Journal,
        body_thread: BodyThread,
        clock: Callable[[], float],
        tracer: SearchTracer | None = None,
    ) -> None:
        self.brokers = brokers
        self._tracer = tracer
        self._answer = brokers.answer if tracer is None else tracer.time_answers(brokers.answer)
        self.upstream = upstream
        self.journal = journal
        self._body_thread = body_thread
        self._clock = clock
        self._pits = PitMemory(clock)
        self.is_draining = False
        self.apply_settings(settings)

    def apply_settings(self, settings: Settings) -> None:
        """Use new settings for rules, budget, limits and log. A search that is under way keeps the old rules."""
        self.settings = settings
        self.rules = ExpansionRules(settings, clock=self._clock, pits=self._pits)
        self.journal.apply_settings(settings)
        if self._tracer is not None:
            self._tracer.apply_settings(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["raw_path"].decode("latin-1")
        responder = Responder(self.upstream, receive, send)
        try:
            if not path.startswith("/"):  # otherwise the client could choose the host: http://engine:9200*@elsewhere/
                await responder.send_json(400, _BAD_TARGET)
            elif self.upstream.leaves_base_path(path):
                await responder.send_json(400, _LEAVING_TARGET)
            elif route := routes.match_search_route(scope["method"], path):
                if self._tracer is None:
                    await self._answer_search(responder, scope, route, path)
                else:
                    with self._tracer.trace_search(scope, route, responder) as traced_scope:
                        await self._answer_search(responder, traced_scope, route, path)
            elif reason := routes.find_unread_reason(scope["method"], path):
                index = routes.find_first_index(path)
                await self._forward_unread(responder, scope, path, Outcome("skipped", reason), index=index)
            elif pit_index := routes.match_pit_opening(scope["method"], path):
                self._remember_pit(responder, pit_index)
                await responder.forward_stream(scope, path)
            elif (address := self.settings.sniffing_address) and asks_for_addresses(scope["method"], path):
                await self._answer_with_address(scope, receive, send, path, address)
            else:
                await responder.forward_stream(scope, path)
        except ClientGone:
            return
        except UpstreamBroken as error:
            # When the application returns before the end of the body, the server cuts the connection. The client then
            # sees that the answer is broken, and does not take it for a short one.
            _log.warning("the engine broke off in the middle of an answer: %s", error)

    async def _answer_with_address(self, scope: Scope, receive: Receive, send: Send, path: str, address: str) -> None:
        """Forward a request for the nodes' addresses, and answer with `address` in place of each."""
        writer = AddressWriter(send, address)
        try:
            await Responder(self.upstream, receive, writer).forward_stream(ask_for_plain_answer(scope), path)
        except UpstreamBroken:
            await writer.send_held_start()
            raise

    async def expand(self, search: Search) -> FlowResult:
        """Return what to send for `search`, by its deadline. Never raises."""
        return await run_flow_async(search_flow(search, self.rules), self._answer)

    async def _expand_large(self, search: Search) -> FlowResult:
        """Return what to send for a search with a large body, which is read in a thread. Never raises."""
        started_s = self._clock() if search.started_s is None else search.started_s
        deadline_s = started_s + self.rules.find_budget_s(search.index)
        run_step = partial(self._body_thread.run, deadline_s)
        questions: list[Question] = []

        async def answer(question: Question) -> Answer:
            questions.append(question)
            return await self._answer(question)

        try:
            return await run_flow_async(search_flow(search, self.rules), answer, run_step=run_step)
        except TimeoutError:
            late = FlowResult(None, Outcome("late", "budget"))
            for question in questions:  # there is one, unless reading the body took too long
                request = question.request
                late = replace(late, query=request.text, index=request.index, assignment=question.assignment)
            return late

    async def _answer_search(self, responder: Responder, scope: Scope, route: routes.Route, path: str) -> None:
        started_s = self._clock()
        body, is_complete = await responder.read_body(scope["headers"], self.settings.max_body_bytes)
        if not is_complete:
            return await self._forward_unread(
                responder, scope, path, Outcome("skipped", "too-large"), index=route.index, prefix=body
            )
        responder.outcome_without_engine = _ENGINE_DOWN
        if route.index is not None and route.api != "_msearch" and (reason := self.rules.find_skip_reason(route.index)):
            request: SearchRequest | Outcome = Outcome("skipped", reason)
        else:
            request = read_search_request(scope, route, path, body, self.settings.max_body_bytes)
        if isinstance(request, Outcome):
            try:
                await responder.forward_body(scope, path, body, request)
            finally:
                self._record_unread_search(responder, route.index, request, SearchOrigin(body, scope["headers"]))
        elif route.api == "_msearch":
            await self._answer_msearch(responder, request, started_s)
        else:
            await self._answer_single_search(responder, request, started_s)

    async def _forward_unread(
        self,
        responder: Responder,
        scope: Scope,
        path: str,
        outcome: Outcome,
        *,
        index: str | None = None,
        prefix: bytes = b"",
    ) -> None:
        """Forward a search whose body is not read, of any size, and record it."""
        responder.outcome_without_engine = _ENGINE_DOWN
        try:
            await responder.forward_stream(scope, path, prefix=prefix, outcome=outcome)
        finally:
            self._record_unread_search(responder, index, outcome, SearchOrigin(headers=scope["headers"]))

    def _record_unread_search(
        self, responder: Responder, index: str | None, outcome: Outcome, origin: SearchOrigin
    ) -> None:
        self._record_search(responder, index, FlowResult(None, outcome), 0.0, origin)

    def _record_search(
        self, responder: Responder, index: str | None, result: FlowResult, added_s: float, origin: SearchOrigin
    ) -> None:
        """Record a search that was answered. An engine that failed to answer is the outcome, whatever was sent to it."""
        if responder.has_engine_failed:
            result = replace(result, outcome=_ENGINE_DOWN)
        self.journal.record_search(index, result, added_s, origin)
        if self._tracer is not None:
            label = self.journal.find_index_label(result.index if index is None else index)
            self._tracer.note_result(label, result, added_s)

    async def _answer_single_search(self, responder: Responder, request: SearchRequest, started_s: float) -> None:
        index = request.route.index
        url_parameters = NO_URL_PARAMETERS
        if request.query_string:
            url_parameters = dsl.UrlParameters.from_mapping(routes.parse_parameters(request.query_string))
        expand = self.expand if len(request.body) <= MAX_INLINE_BYTES else self._expand_large
        search = Search(
            index, request.body, url_parameters, client=request.client, started_s=started_s, headers=request.headers
        )
        result = await expand(search)
        added_s = self._clock() - started_s
        if index is None and result.index is not None:
            index = result.index
            if index != self.settings.pit_index:
                self._remember_pit(responder, index)  # the answer may give the point in time a new id
        if result.assignment is not None:
            (result,) = name_searches(responder, [result])
        if result.cache_keys:
            responder.on_accepted = partial(self.brokers.accept, result.cache_keys)
        try:
            if result.interleaves and result.body is not None and can_interleave_request(request):
                result = await self._send_interleaved(responder, request, result, self.rules.find_budget_s(index))
            else:
                outcome = await self._send_search(responder, request, result)
                if outcome is not result.outcome:
                    result = replace(result, outcome=outcome)
        finally:
            self._record_search(responder, index, result, added_s, SearchOrigin(request.body, request.headers))

    async def _send_search(self, responder: Responder, request: SearchRequest, result: FlowResult) -> Outcome:
        """Send the rewrite, or the original search where there is none or it fails. Return the outcome."""
        if result.body is None:
            await responder.send_original(request, result.outcome)
            return result.outcome
        try:
            rejected_positions = await responder.send_rewrite(request, result.body, result.outcome)
        except AnswerUnseen:
            await responder.send_original(request, _UNSEEN)
            return _UNSEEN
        if not rejected_positions:
            return result.outcome
        accepted_positions = await responder.send_original_after_rejection(request, [0], is_msearch=False)
        if not accepted_positions:  # the client's own search is wrong, not the rewrite
            return ORIGINAL_FAILS
        self._handle_rejection(result.index)
        return REJECTED

    async def _send_interleaved(
        self, responder: Responder, request: SearchRequest, result: FlowResult, wait_s: float
    ) -> FlowResult:
        """Send the hits of the original and the expanded search. Return the result with what was served."""
        if result.body is None or result.assignment is None:
            return result
        seed = f"{result.assignment.experiment}\0{result.assignment.unit}\0{result.query}"
        served = await responder.send_interleaved(request, result.body, result.outcome, seed=seed, wait_s=wait_s)
        if served is None:
            return result
        if served.outcome is REJECTED:
            self._handle_rejection(result.index)
        assignment = result.assignment
        if served.merged is not None:
            assignment = assignment.add_teams(served.merged.hit_ids, served.merged.teams)
        return replace(result, outcome=served.outcome, assignment=assignment)

    async def _answer_msearch(self, responder: Responder, request: SearchRequest, started_s: float) -> None:
        try:
            multi = split_msearch(
                request.body,
                request.route.index,
                started_s=started_s,
                client=request.client,
                headers=request.headers,
            )
        except Skip as error:
            outcome = Outcome("skipped", error.reason)
            try:
                await responder.send_original(request, outcome)
            finally:
                origin = SearchOrigin(headers=request.headers)
                self._record_unread_search(responder, request.route.index, outcome, origin)
            return
        expand = self.expand if len(request.body) <= MAX_INLINE_BYTES else self._expand_large
        results = await asyncio.gather(*(expand(search) for search in multi.searches))
        added_s = self._clock() - started_s
        if any(result.assignment is not None for result in results):
            results = name_searches(responder, results)
        if cache_keys := tuple(key for result in results for key in result.cache_keys):
            responder.on_accepted = partial(self.brokers.accept, cache_keys)
        failure: Outcome | None = None
        try:
            failure = await self._send_msearch(responder, request, multi, results)
        finally:
            for search, result in zip(multi.searches, results, strict=True):
                if failure is not None and result.body is not None:
                    result = replace(result, outcome=failure)
                self._record_search(
                    responder, search.index, result, added_s, SearchOrigin(search.body, request.headers)
                )

    async def _send_msearch(
        self, responder: Responder, request: SearchRequest, multi: MultiSearch, results: list[FlowResult]
    ) -> Outcome | None:
        """Send the searches with their rewrites, or the original ones. Return what became of the rewrites otherwise."""
        outcome = summarize_outcomes(results)
        rewritten_positions = [i for i, result in enumerate(results) if result.body is not None]
        if not rewritten_positions:
            await responder.send_original(request, outcome)
            return None
        try:
            rejected_positions = await responder.send_rewrite(
                request, join_msearch(multi, results), outcome, rewritten_positions=rewritten_positions
            )
        except AnswerUnseen:
            await responder.send_original(request, _UNSEEN)
            return _UNSEEN
        if not rejected_positions:
            return None
        accepted_positions = await responder.send_original_after_rejection(request, rejected_positions, is_msearch=True)
        for i in accepted_positions:
            self._handle_rejection(results[i].index)
        return REJECTED if accepted_positions else ORIGINAL_FAILS

    def _remember_pit(self, responder: Responder, index: str) -> None:
        """Remember the index of the point in time whose id the answer to this request brings."""
        responder.wrap_send(lambda send: PitAnswerReader(send, lambda pit_id: self._pits.remember_index(pit_id, index)))

    def _handle_rejection(self, index: str | None) -> None:
        self.rules.pause_index(index)
        self.journal.record_rejection(index)
