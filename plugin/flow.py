"""Decide how a search is rewritten, without any input or output.

A flow is a Python generator: it yields a `Question`, is sent an `Answer`, and returns a `FlowResult`. `run_flow` and
`run_flow_async` drive one. A proxy, a client hook and an offline evaluation share everything but the driver.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from querylift.plugin import dsl
from querylift.plugin.broker import Answer, Question
from querylift.plugin.expansion import Expansion, normalize_query
from querylift.plugin.experiments import Assignment, Headers, find_ubi_query_id
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.interleave import can_interleave
from querylift.plugin.outcome import Outcome, Skip
from querylift.plugin.pit_memory import PitMemory
from querylift.plugin.search_memory import ExpressionMemory, ParsedSearch, SearchMemory
from querylift.plugin.settings import Settings
from querylift.plugin.settings_tables.index import IndexSettings

_log = logging.getLogger("querylift")

SearchFlow = Generator[Question, Answer, "FlowResult"]
StepRunner = Callable[..., Awaitable[Any]]
"""Awaits `function(*arguments)` for the function and the arguments that it is given."""


@dataclass(frozen=True, slots=True)
class Search:
    """One search as it came in.

    `index` is the index expression of the URL or of the `_msearch` header, or None. `deadline_s` is on the broker's clock.
    `client` is any text that tells clients apart. When `started_s` is given, on the same clock, the time budget of the
    index counts from then. `headers` are those of the request. Without them there is no user, so experiments do not apply
    and the search is expanded.
    """

    index: str | None
    body: bytes
    url_parameters: dsl.UrlParameters = field(default_factory=dsl.UrlParameters)
    deadline_s: float = float("inf")
    client: str = ""
    started_s: float | None = None
    headers: Headers | None = None

    def __repr__(self) -> str:
        return f"Search(index={self.index!r}, {len(self.body)} bytes)"


def make_match_body(query: str, *fields: str) -> bytes:
    """Return the body of a plain search for `query` in one field or in several."""
    if len(fields) == 1:
        return json.dumps({"query": {"match": {fields[0]: query}}}).encode()
    return json.dumps({"query": {"multi_match": {"query": query, "fields": fields}}}).encode()


def choose_explained_fields(settings: Settings, index: str | None) -> tuple[str, ...]:
    """Return the fields that an explanation searches when none are named: those of the index's table, or else `text`."""
    table = settings.find_index_settings(index)
    return table.fields if table and table.fields else ("text",)


@dataclass(frozen=True, slots=True)
class FlowResult:
    """The rewritten body, or None when the original body is to be sent.

    `query` is the user's query, and `index` the index expression whose table was applied. Both are empty when the search was
    left alone before its query was found. `cache_keys` are for the broker's `accept`. There are none when the cache was not
    asked. `assignment` is that of a search in an experiment. `interleaves` says that the hits of both searches are to be
    interleaved.
    """

    body: bytes | None
    outcome: Outcome
    query: str = ""
    expansion: Expansion | None = None
    cache_keys: tuple[str, ...] = ()
    index: str | None = None
    assignment: Assignment | None = None
    interleaves: bool = False

    def __repr__(self) -> str:
        return f"FlowResult({self.outcome.format_header()})"


class ExpansionRules:
    """Which searches are expanded, and how: the settings, and the indices on which expansion pauses."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float],
        pause_s: float = 60,
        pits: PitMemory | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._pits = pits or PitMemory(clock)
        self._pause_s = pause_s
        self._paused_until_s: dict[str, float] = {}
        self._index_settings: ExpressionMemory[IndexSettings | None] = ExpressionMemory(
            settings.find_index_settings, unknown=None
        )
        self.memory = SearchMemory()

    def find_table(self, search: Search, read_body: Callable[[], dict[str, Any]]) -> tuple[IndexSettings, str]:
        """Return the settings table for a search, and the index expression that it belongs to. Raises Skip."""
        if not self._settings.enabled:
            raise Skip("off")
        index = search.index
        if index is None and "pit" in read_body():
            index = self._pits.find_index(read_body()["pit"]) or self._settings.pit_index
            if index is None:
                raise Skip("pit")
        reason = self.find_skip_reason(index)
        index_settings = self._index_settings.get(index)
        if reason is not None or index_settings is None or index is None:
            raise Skip(reason or "index")
        return index_settings, index

    def find_skip_reason(self, index: str | None) -> str | None:
        """Return why no search on `index` is expanded now, or None when searches may be. Needs no search body."""
        if not self._settings.enabled:
            return "off"
        index_settings = self._index_settings.get(index)
        if index_settings is None or index is None:
            return "index"
        if not index_settings.enabled:
            return "off"
        return "paused" if self._paused_until_s.get(index, 0) > self._clock() else None

    def find_budget_s(self, index: str | None) -> float:
        """Return the seconds that a search on `index` may wait. Without an index, return the longest budget in the settings."""
        table = self._index_settings.get(index)
        if table is not None and table.budget_ms is not None:
            return table.budget_ms / 1000
        if index is not None:
            return self._settings.budget_ms / 1000
        budgets_ms = [table.budget_ms for table in self._settings.index.values() if table.budget_ms is not None]
        return max([self._settings.budget_ms, *budgets_ms]) / 1000

    def pause_index(self, index: str | None) -> None:
        """Stop expanding searches on `index` for a while. The engine refused one."""
        now_s = self._clock()
        self._paused_until_s = {name: until_s for name, until_s in self._paused_until_s.items() if until_s > now_s}
        self._paused_until_s[index or self._settings.pit_index or ""] = now_s + self._pause_s


def search_flow(search: Search, rules: ExpansionRules) -> SearchFlow:
    """Expand one search. When anything goes wrong, the result says to send the original."""
    return (yield from _catch_faults(_expand_search(search, rules)))


def _catch_faults(flow: SearchFlow) -> SearchFlow:
    try:
        return (yield from flow)
    except Skip as skipped:
        return FlowResult(None, Outcome("skipped", skipped.reason))
    except Exception:
        _log.exception("the rewrite has a fault; the original search was sent")
        return FlowResult(None, Outcome("error", "internal"))


def _expand_search(search: Search, rules: ExpansionRules) -> SearchFlow:
    key = (search.index, search.body, search.url_parameters)
    parsed_search = rules.memory.find(key)
    if parsed_search is None:
        table, parsed_search = _parse_search(search, rules)
        if search.index is not None:  # otherwise the index may be another one the next time
            rules.memory.add(key, parsed_search)
    else:
        table, _ = rules.find_table(search, dict)
    experiment = table.policy.experiment
    if experiment is None or search.headers is None:
        return (yield from _rewrite_search(search, parsed_search, table))
    body, request = parsed_search.body, parsed_search.request
    assignment = experiment.assign(search.headers, request.text, query_id=find_ubi_query_id(body))
    if assignment.variant == "control":
        outcome = Outcome("skipped", "control")
        return FlowResult(None, outcome, request.text, index=request.index, assignment=assignment)
    result = yield from _catch_faults(_rewrite_search(search, parsed_search, table, assignment))
    interleaves = experiment.interleaves and can_interleave(body, search.url_parameters)
    return replace(result, query=request.text, assignment=assignment, interleaves=interleaves)


def _rewrite_search(
    search: Search, parsed_search: ParsedSearch, table: IndexSettings, assignment: Assignment | None = None
) -> SearchFlow:
    """Ask for an expansion, and add it to a search that may be expanded."""
    request = parsed_search.request
    answer = yield Question(
        request,
        _find_deadline_s(search, table),
        shows_words=parsed_search.shows_words,
        client=search.client,
        continues_hits=parsed_search.continues_hits,
        generators=table.generator or (),
        ttl_s=table.cache_ttl_s,
        assignment=assignment,
    )
    if answer.expansion is None:
        return FlowResult(None, answer.outcome, request.text, cache_keys=answer.cache_keys, index=request.index)
    body, boost_reason = parsed_search.rewrite(answer.expansion, table.policy)
    outcome = answer.outcome
    if boost_reason and not outcome.reason:
        outcome = replace(outcome, reason=boost_reason)
    return FlowResult(body, outcome, request.text, answer.expansion, answer.cache_keys, request.index)


def _parse_search(search: Search, rules: ExpansionRules) -> tuple[IndexSettings, ParsedSearch]:
    """Return the settings table of a search, and what is in its body. Raises Skip."""
    parsed_bodies: list[dict[str, Any]] = []

    def read_body() -> dict[str, Any]:
        """Parse the body when it is needed first, and only once."""
        if not parsed_bodies:
            parsed_bodies.append(dsl.parse_body(search.body))
        return parsed_bodies[0]

    table, index = rules.find_table(search, read_body)
    body = read_body()
    user_query = dsl.find_user_query(body, table.policy, search.url_parameters)
    request = ExpansionRequest(normalize_query(user_query.text), index, table.fields or user_query.fields)
    shows_words = dsl.shows_query_words(body, search.url_parameters)
    continues_hits = _continues_hits(body, search.url_parameters)
    return table, ParsedSearch(body, user_query, request, shows_words, continues_hits)


def _find_deadline_s(search: Search, table: IndexSettings) -> float:
    """Return when the time budget of a search ends, on the broker's clock."""
    if search.started_s is None or table.budget_ms is None:
        return search.deadline_s
    return min(search.deadline_s, search.started_s + table.budget_ms / 1000)


def _continues_hits(body: Mapping[str, Any], url_parameters: dsl.UrlParameters) -> bool:
    """Whether a search asks for hits that follow those of an earlier search."""
    return body.get("from", url_parameters.from_ or 0) not in (0, "0") or "search_after" in body


def run_flow(flow: SearchFlow, answer: Callable[[Question], Answer]) -> FlowResult:
    """Drive `flow` with a function that answers at once."""
    step = _advance_flow(flow, None)
    while isinstance(step, Question):
        step = _advance_flow(flow, answer(step))
    return step


async def run_flow_async(
    flow: SearchFlow, answer: Callable[[Question], Awaitable[Answer]], *, run_step: StepRunner | None = None
) -> FlowResult:
    """Drive `flow` with a coroutine function. `run_step` runs each step of the flow, for example in a thread."""
    reply: Answer | None = None
    while True:
        step = _advance_flow(flow, reply) if run_step is None else await run_step(_advance_flow, flow, reply)
        if isinstance(step, FlowResult):
            return step
        reply = await answer(step)


def _advance_flow(flow: SearchFlow, reply: Answer | None) -> Question | FlowResult:
    """Send `reply` into `flow`, or start it with None. Return its next question, or its result at the end."""
    try:
        return flow.send(reply) if reply is not None else next(flow)
    except StopIteration as stop:
        result: FlowResult = stop.value
        return result


def summarize_outcomes(results: list[FlowResult]) -> Outcome:
    """Return one outcome for several searches: the commonest one, among the expanded ones when there are any."""
    outcomes = [result.outcome for result in results]
    outcomes = [outcome for outcome in outcomes if outcome.is_expanded] or outcomes
    if not outcomes:
        return Outcome("skipped", "no-text")
    return Counter(outcomes).most_common(1)[0][0]


def explain_result(result: FlowResult, search: Search) -> dict[str, Any]:
    """Return what is sent and why, as JSON for a person: outcome, reason, sentence, query, expansion and body."""
    sent_body = result.body if result.body is not None else search.body
    try:
        body: Any = json.loads(sent_body)
    except ValueError:
        body = sent_body.decode("utf-8", "replace")
    return {
        "outcome": result.outcome.kind,
        "reason": result.outcome.reason,
        "sentence": result.outcome.format_sentence(),
        "text": result.query,
        "expansion": result.expansion.to_json() if result.expansion else None,
        "body": body,
    }
