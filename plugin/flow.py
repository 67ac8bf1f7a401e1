"""What happens to a search between client and engine, without any input or output.

A flow is a generator: it yields a `Question`, is sent an `Answer`, and returns a `Result`. `run` and `run_async` drive
one; a proxy, a client hook and an offline evaluation share everything but the driver.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from querylift.plugin import dsl
from querylift.plugin.broker import Answer, Question
from querylift.plugin.expansion import Expansion, clean_query
from querylift.plugin.generators.base import Ask
from querylift.plugin.outcome import Outcome
from querylift.plugin.policy import Policy
from querylift.plugin.settings import IndexSettings, Settings

_log = logging.getLogger("querylift")

SearchFlow = Generator[Question, Answer, "Result"]
MAX_EXPRESSION_CHARS = 1024
"""A longer index expression is no name that a settings table lists, and costs time and memory to look at."""
MAX_TABLES = 1024
"""Index expressions whose settings are remembered; clients choose them, so there may be any number."""


@dataclass(frozen=True, slots=True)
class Search:
    """One search as it came in. `index` is the index expression of the URL or of the `_msearch` header, None for none.

    `deadline_s` is on the clock that the expander reads.
    """

    index: str | None
    body: bytes
    params: dsl.Params = field(default_factory=dsl.Params)
    deadline_s: float = float("inf")

    def __repr__(self) -> str:
        return f"Search(index={self.index!r}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class Result:
    """What to send: `body` is None where the original bytes go on as they are. `text` is the user's, where it was found."""

    body: bytes | None
    outcome: Outcome
    text: str = ""
    expansion: Expansion | None = None

    def __repr__(self) -> str:
        return f"Result({self.outcome.header()})"


class Rules:
    """Which searches are expanded and how: the settings, and the indices on which expansion pauses just now."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float], pause_s: float = 60) -> None:
        self._settings = settings
        self._clock = clock
        self._pause_s = pause_s
        self._paused: dict[str, float] = {}
        self._tables: dict[str | None, IndexSettings | None] = {}

    def policy(self, search: Search, body: Callable[[], dict[str, Any]]) -> tuple[Policy, str]:
        """The policy and the index expression that it was found by. Raises Refused."""
        if not self._settings.enabled:
            raise Refused("off")
        index = search.index
        if index is None and "pit" in body():
            index = self._settings.pit_index
            if index is None:
                raise Refused("pit")
        reason = self.refusal(index)
        table = self._table(index)
        if reason is not None or table is None or index is None:
            raise Refused(reason or "index")
        return table.policy, index

    def refusal(self, index: str | None) -> str | None:
        """Why no search on `index` is expanded just now, None where it may be: known before a body is looked into."""
        if not self._settings.enabled:
            return "off"
        table = self._table(index)
        if table is None or index is None:
            return "index"
        if not table.enabled:
            return "off"
        return "paused" if self._paused.get(index, 0) > self._clock() else None

    def _table(self, index: str | None) -> IndexSettings | None:
        """`Settings.index_for`, remembered: traffic names few indices, and matching patterns takes time."""
        if index is not None and len(index) > MAX_EXPRESSION_CHARS:
            return None
        if index is not None and len(index) > MAX_EXPRESSION_CHARS:
            return None
        try:
            return self._tables[index]
        except KeyError:
            if len(self._tables) >= MAX_TABLES:
                self._tables.clear()
            return self._tables.setdefault(index, self._settings.index_for(index))

    def pause(self, index: str | None) -> None:
        """The engine refused an expanded search on `index`: leave its searches alone for a while."""
        self._paused = {i: until for i, until in self._paused.items() if until > self._clock()}
        self._paused[index or self._settings.pit_index or ""] = self._clock() + self._pause_s


class Refused(Exception):
    """This search is not expanded. `reason` is a key of outcome.REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def search_flow(search: Search, rules: Rules) -> SearchFlow:
    """Expand one search. Whatever goes wrong, the result says to send the original."""
    try:
        return (yield from _expand(search, rules))
    except (Refused, dsl.Skip) as refused:
        return Result(None, Outcome("skipped", refused.reason))
    except Exception:
        _log.exception("a fault in the rewrite; the original search was sent")
        return Result(None, Outcome("error", "internal"))


def _expand(search: Search, rules: Rules) -> SearchFlow:
    parsed: list[dict[str, Any]] = []

    def body() -> dict[str, Any]:
        if not parsed:
            parsed.append(dsl.parse(search.body))
        return parsed[0]

    policy, index = rules.policy(search, body)
    found = dsl.find(body(), policy, search.params)
    text = clean_query(found.text)
    answer = yield Question(Ask(text, index, policy.fields or found.fields), search.deadline_s)
    if answer.expansion is None:
        return Result(None, answer.outcome, text)
    rewritten = dsl.dump(dsl.rewrite(body(), found, answer.expansion, policy))
    return Result(rewritten, answer.outcome, text, answer.expansion)


def run(flow: SearchFlow, answer: Callable[[Question], Answer]) -> Result:
    """Drive `flow` with a function that answers at once."""
    try:
        question = next(flow)
        while True:
            question = flow.send(answer(question))
    except StopIteration as stop:
        result: Result = stop.value
        return result


async def run_async(flow: SearchFlow, answer: Callable[[Question], Awaitable[Answer]]) -> Result:
    """Drive `flow` with a coroutine function."""
    try:
        question = next(flow)
        while True:
            question = flow.send(await answer(question))
    except StopIteration as stop:
        result: Result = stop.value
        return result


MAX_SEARCHES = 128
"""An `_msearch` of more is left alone: reading it would hold up everybody else's searches."""


@dataclass(frozen=True, slots=True)
class MultiSearch:
    """An `_msearch` body cut into its lines: search number i has its header in line 2i and its body in line 2i + 1."""

    lines: tuple[bytes, ...]
    searches: tuple[Search, ...]


def split_msearch(raw: bytes, index: str | None, *, deadline_s: float) -> MultiSearch:
    """The searches of an `_msearch` body. Raises Refused where they are too many, Skip where the lines do not pair up."""
    if raw.count(b"\n") > 2 * MAX_SEARCHES + 1:
        raise Refused("too-many-searches")
    lines = raw.split(b"\n")
    if lines and not lines[-1].strip():
        lines = lines[:-1]
    if len(lines) % 2:
        raise dsl.Skip("not-json")
    searches = []
    for i in range(0, len(lines), 2):
        header = dsl.parse(lines[i]) if lines[i].strip() else {}
        searches.append(Search(_header_index(header, index), lines[i + 1], deadline_s=deadline_s))
    return MultiSearch(tuple(lines), tuple(searches))


def join_msearch(multi: MultiSearch, results: Sequence[Result]) -> bytes:
    """The `_msearch` body with the rewritten searches in place; every other line as it came."""
    lines = list(multi.lines)
    for i, result in enumerate(results):
        if result.body is not None:
            lines[2 * i + 1] = result.body
    return b"\n".join(lines) + b"\n"


def _header_index(header: Mapping[str, Any], default: str | None) -> str | None:
    """The index expression of one `_msearch` header, which may be a string or a list, or the URL's."""
    named = header.get("index", header.get("indices"))
    if isinstance(named, list) and all(isinstance(name, str) for name in named):
        return ",".join(named) or default
    return named if isinstance(named, str) and named else default


def summary(results: list[Result]) -> Outcome:
    """One outcome for several searches: what the most of them became, an applied one first."""
    applied = [r.outcome for r in results if r.outcome.applied]
    outcomes = applied or [r.outcome for r in results]
    if not outcomes:
        return Outcome("skipped", "no-text")
    return Counter(outcomes).most_common(1)[0][0]


def explain(result: Result, search: Search) -> dict[str, Any]:
    """What would be sent and why, as JSON for a person: outcome, sentence, text, expansion, the body."""
    sent = result.body if result.body is not None else search.body
    try:
        body: Any = json.loads(sent)
    except ValueError:
        body = sent.decode("utf-8", "replace")
    return {
        "outcome": result.outcome.kind,
        "reason": result.outcome.reason,
        "sentence": result.outcome.sentence(),
        "text": result.text,
        "expansion": result.expansion.to_json() if result.expansion else None,
        "body": body,
    }
