"""Expansions made ahead of traffic, for what the served flow would ask for.

`plan` sends a query log through the served flow to see which queries reach the generator, and `Maker` has those made that a
`Store` does not hold yet: the proxy's cache, or a table (`querylift.plugin.warming.stores`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from querylift.plugin.errors import Busy, GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.flow import Rules, Search, search_flow
from querylift.plugin.generators import factory
from querylift.plugin.generators.base import Ask, Generator
from querylift.plugin.outcome import REASONS
from querylift.plugin.proxy.server import match_body
from querylift.plugin.settings import IndexSettings, Settings
from querylift.plugin.warming.query_log import QueryLog

Sleep = Callable[[float], Awaitable[None]]

DEFAULT_LANES = 16
"""Requests under way for a generator that has no slots of its own."""
_NO_HURRY_S = 86_400.0
_ENDPOINT_S = 60.0
_PAUSES_S = (0.5, 4.0)
"""Before a failed query is tried again."""
_BUSY_S = 0.05
_AWAY_S = 120.0
"""How long a model's worker that ended is waited for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the served flow would ask for, in the log's order, and why it would not for the rest."""

    asks: tuple[Ask, ...]
    skipped: Mapping[str, int]


@dataclass(slots=True)
class Tally:
    """The counts of one run, true at any time, however it ends. `first_failure` is a sentence without query text."""

    queries: int = 0
    distinct: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    made: int = 0
    there: int = 0
    failed: int = 0
    first_failure: str = ""
    seconds: float = 0.0

    @property
    def left(self) -> int:
        """Queries that were not come to."""
        return self.distinct - self.made - self.there - self.failed - self.skipped.total()

    def begin(self, log: QueryLog, plan: Plan) -> None:
        """Count what there is to do."""
        self.queries = log.read
        self.skipped.update(plan.skipped)
        self.distinct = len(plan.asks) + self.skipped.total()

    def line(self) -> str:
        """The summary: "9 queries, 7 distinct: 4 made, 1 already there, 2 skipped (code 1, quoted 1), 0 failed; ..."."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.skipped.items()))
        parts = [f"{self.made} made", f"{self.there} already there"]
        parts.append(f"{self.skipped.total()} skipped" + (f" ({reasons})" if reasons else ""))
        parts.append(f"{self.failed} failed")
        if self.left:
            parts.append(f"{self.left} left")
        speed = self.made / self.seconds if self.seconds else 0.0
        return f"{self.queries} queries, {self.distinct} distinct: {', '.join(parts)}; {speed:.1f} made a second"


class Store(Protocol):
    """Where expansions made ahead of traffic are kept."""

    async def has(self, ask: Ask) -> bool:
        """Whether nothing need be made for `ask`."""
        ...

    async def keep(self, ask: Ask, expansion: Expansion | None) -> None:
        """Keep what was made. Raises GeneratorError where this one cannot be kept, QueryliftError where none can."""
        ...


class AsServed:
    """What the served flow asks its generator for, query by query, in a plain search on one index."""

    def __init__(self, settings: Settings, index: str, table: IndexSettings) -> None:
        self._rules = Rules(settings, clock=time.monotonic)
        self._index = index
        self._field = table.fields[0] if table.fields else "text"

    @classmethod
    def on(cls, settings: Settings, index: str) -> AsServed:
        """As on that index. Raises SettingsError where its searches are not expanded."""
        reason = Rules(settings, clock=time.monotonic).refusal(index)
        table = settings.index_for(index)
        if reason is not None or table is None:
            raise SettingsError(
                f"searches on {index!r} are not expanded ({REASONS[reason or 'index']}); mend that in the settings, "
                "or name another --index"
            )
        return cls(settings, index, table)

    @classmethod
    def anywhere(cls, tables: Iterable[IndexSettings]) -> AsServed:
        """As on any of the indices that `tables` govern, for a generator to which they are all the same."""
        # Of all that a table says, a plain search's text is only held against max_query_words.
        widest = max(tables, key=lambda table: table.max_query_words, default=IndexSettings())
        table = widest.model_copy(update={"enabled": True})
        return cls(Settings(index={"any": table}), "any", table)

    def ask(self, text: str) -> Ask | str:
        """What is asked for `text`, or the reason for which nothing is."""
        flow = search_flow(Search(self._index, match_body(text, self._field)), self._rules)
        try:
            return next(flow).ask
        except StopIteration as done:
            return str(done.value.outcome.reason)
        finally:
            flow.close()


def as_served(settings: Settings, generator: Generator, index: str | None) -> AsServed:
    """What `serve` with these settings asks `generator` for. Raises SettingsError where that is nothing, or not known."""
    if generator.reads_index:
        return _reading_index(settings, index)
    if index is not None:
        return AsServed.on(settings, index)
    if not settings.enabled:
        raise SettingsError("enabled is false, so no search is expanded; for this run, set QUERYLIFT_ENABLED=true")
    enabled = [table for table in settings.index.values() if table.enabled]
    if not enabled:
        raise SettingsError("the settings expand searches on no index; add a table like [index.products]")
    return AsServed.anywhere(enabled)


def _reading_index(settings: Settings, index: str | None) -> AsServed:
    if index is None:
        raise SettingsError(f"generator is {settings.generator!r}, which reads the index; name it with --index")
    served = AsServed.on(settings, index)
    table = settings.index_for(index)
    if table is None or not table.fields:
        raise SettingsError(
            f"generator is {settings.generator!r}, which reads the fields that are searched; list them as fields in the "
            f"settings' table of {index!r}"
        )
    return served


def plan(log: QueryLog, served: AsServed, *, key: Callable[[Ask], str]) -> Plan:
    """What the served flow asks for; of asks with one `key`, the most frequent."""
    asks: dict[str, Ask] = {}
    skipped: Counter[str] = Counter()
    for text in log.texts:
        ask = served.ask(text)
        if isinstance(ask, str):
            skipped[ask] += 1
        else:
            asks.setdefault(key(ask), ask)
    return Plan(tuple(asks.values()), skipped)


def patient(settings: Settings) -> Settings:
    """`settings` for a run in which nobody waits for one expansion: their words are the same, the time limits wider."""
    llama = settings.llama.model_copy(update={"max_seconds": _NO_HURRY_S})  # a worker that hangs is found without it
    http = settings.http.model_copy(update={"max_seconds": max(settings.http.max_seconds, _ENDPOINT_S)})
    return settings.model_copy(update={"llama": llama, "http": http})


def lanes(settings: Settings) -> int:
    """Requests under way that keep the generator busy and never find it so."""
    if settings.generator.partition(":")[0] == "llama":
        return settings.llama.slots + settings.llama.queue_size
    return DEFAULT_LANES


@contextlib.asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Generator]:
    """The generator of `settings`, started; closed on exit."""
    generator = factory.make(settings.generator, patient(settings))
    try:
        await generator.start()
        yield generator
    finally:
        await generator.close()


class Maker:
    """Has a generator make what a store does not hold, `lanes` at a time, and counts in `tally`.

    Cancelling `run` gives up what is under way; what was made is kept.
    """

    def __init__(
        self, generator: Generator, store: Store, tally: Tally, *, lanes: int, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._generator = generator
        self._store = store
        self._tally = tally
        self._lanes = lanes
        self._sleep = sleep
        self._one_by_one = asyncio.Lock()
        self._failures_in_a_row = 0
        self._hopeless_at = 2 * lanes + 10  # when all under way have failed twice, and some alone

    async def run(self, asks: Sequence[Ask], on_done: Callable[[], None]) -> None:
        """Come to every ask; `on_done` is called after each. Raises QueryliftError where the store keeps nothing more."""
        began_s = time.monotonic()
        waiting = iter(asks)
        tasks = [asyncio.ensure_future(self._lane(waiting, on_done)) for _ in range(min(self._lanes, len(asks)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tally.seconds += time.monotonic() - began_s

    async def _lane(self, waiting: Iterator[Ask], on_done: Callable[[], None]) -> None:
        for ask in waiting:
            try:
                await self._come_to(ask)
            except GeneratorError as error:
                self._fail(error)
            on_done()

    async def _come_to(self, ask: Ask) -> None:
        if await self._store.has(ask):
            self._tally.there += 1
            return
        expansion = await self._expansion(ask)
        await _to_its_end(self._keep(ask, expansion))

    async def _keep(self, ask: Ask, expansion: Expansion | None) -> None:
        await self._store.keep(ask, expansion)
        self._tally.made += 1

    def _fail(self, error: GeneratorError) -> None:
        self._tally.failed += 1
        self._tally.first_failure = self._tally.first_failure or str(error)

    async def _expansion(self, ask: Ask) -> Expansion | None:
        """What the generator makes, tried again where it fails, as long as there is hope that it will not always."""
        for pause_s in _PAUSES_S:
            try:
                return await self._ask(ask)
            except GeneratorError:
                if not self._hopeful():
                    raise
            await self._sleep(pause_s)
        async with self._one_by_one:  # a query that ends the worker is to take as few others with it as can be
            return await self._ask(ask)

    async def _ask(self, ask: Ask) -> Expansion | None:
        try:
            expansion = await self._unless_busy(ask)
        except Exception as error:
            self._failures_in_a_row += 1
            if isinstance(error, GeneratorError):
                raise
            raise GeneratorError(f"{type(self._generator).__name__} failed: {type(error).__name__}") from error
        self._failures_in_a_row = 0
        return expansion

    async def _unless_busy(self, ask: Ask) -> Expansion | None:
        await self._worker()
        while True:
            try:
                return await self._generator.expand(ask)
            except Busy:
                await self._sleep(_BUSY_S)

    async def _worker(self) -> None:
        """Wait while the generator is one with a worker process and has none: all would fail, and none by its own fault."""
        waited_s = 0.0
        while getattr(self._generator, "pid", 0) is None and waited_s < _AWAY_S and self._hopeful():
            await self._sleep(_BUSY_S)
            waited_s += _BUSY_S

    def _hopeful(self) -> bool:
        return self._failures_in_a_row < self._hopeless_at


async def _to_its_end(doing: Awaitable[None]) -> None:
    """Await what being cancelled must not cut short."""
    task = asyncio.ensure_future(doing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
