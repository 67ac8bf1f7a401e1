"""Answer questions with several generators: one broker for each of them, over one cache."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass

from querylift.plugin.broker import Answer, ExpansionBroker, Question, make_broker
from querylift.plugin.cache import Cache, make_cache
from querylift.plugin.cache_faults import CacheFaults
from querylift.plugin.generation_meter import GenerationMeter
from querylift.plugin.generators.base import Generator
from querylift.plugin.generators.factory import GeneratorOrigin, make_generator, read_generator_origin
from querylift.plugin.holding_cache import HoldingCache
from querylift.plugin.outcome import Outcome
from querylift.plugin.settings import Settings

_log = logging.getLogger("querylift")
FINISH_S = 30.0
"""How long a generator that is no longer used may go on with the expansions that it has begun."""
_NOTHING = Outcome("skipped", "nothing")
_NOT_OPEN = Answer(None, Outcome("error", "generator"))


@dataclass(frozen=True, slots=True)
class _OpenGenerator:
    """A broker, and what its generator was made from. `origin` None stands for a generator that the caller made."""

    broker: ExpansionBroker
    origin: GeneratorOrigin | None


class ExpansionBrokers:
    """Brokers by the name of their generator, as the settings give it.

    Each generator has its own queue, its own times and its own failures, so that one never holds up another. A question
    names the generators that may answer. They are asked in that order, until one has an expansion.

    `make_meter` gives the meter of the generator with a name.
    """

    def __init__(self, cache: Cache, make_meter: Callable[[str], GenerationMeter] | None = None) -> None:
        self._cache = cache
        self._make_meter = make_meter or (lambda name: GenerationMeter())
        self._open: dict[str, _OpenGenerator] = {}
        self._closing_tasks: set[asyncio.Task[None]] = set()

    @property
    def generators(self) -> dict[str, Generator]:
        """The open generators by name."""
        return {name: opened.broker.generator for name, opened in self._open.items()}

    @property
    def pending_count(self) -> int:
        """The number of generations under way, over all generators."""
        return sum(opened.broker.pending_count for opened in self._open.values())

    @property
    def cache_faults(self) -> CacheFaults:
        """What the cache could not read or write."""
        return self._cache.faults

    async def answer(self, question: Question) -> Answer:
        """Return the first expansion that a generator of the question has before the deadline. Never raises GeneratorError.

        When none has one, the outcome is the first that says more than `nothing`. All pages of a query have the same
        expansion: a query that one generator answered too late stays pinned for that generator, and its later pages go to
        the next one too.
        """
        if len(question.generators) == 1:
            return await self._ask(question.generators[0], question)
        cache_keys: tuple[str, ...] = ()
        outcome = _NOTHING
        for name in question.generators:
            answer = await self._ask(name, question)
            cache_keys += answer.cache_keys
            if answer.expansion is not None:
                return Answer(answer.expansion, answer.outcome, cache_keys)
            if outcome == _NOTHING:
                outcome = answer.outcome
        return Answer(None, outcome, cache_keys)

    async def _ask(self, name: str, question: Question) -> Answer:
        opened = self._open.get(name)
        return _NOT_OPEN if opened is None else await opened.broker.answer(question)

    def accept(self, cache_keys: tuple[str, ...]) -> None:
        """Note that the engine accepted the search of an answer, so that its cache entries may be written."""
        for opened in self._open.values():
            opened.broker.accept(cache_keys)

    async def open_generators(
        self, settings: Settings, names: Iterable[str], made_generators: Mapping[str, Generator] | None = None
    ) -> None:
        """Serve with the generators of these names. Raises SettingsError, MissingExtra; then nothing has changed.

        A generator that is open stays, unless its files or its settings are others now. One that is no longer used finishes
        its expansions in the background and is closed. `made_generators` are not started yet, and take the place of those
        of the same name.
        """
        opened: dict[str, _OpenGenerator] = {}
        started: list[ExpansionBroker] = []
        try:
            for name in dict.fromkeys(names):
                opened[name] = self._make_or_keep(settings, name, (made_generators or {}).get(name))
            for name, generator in opened.items():
                if generator is not self._open.get(name):
                    started.append(generator.broker)
                    await generator.broker.generator.start()
        except BaseException:
            await asyncio.gather(*(broker.close(closes_cache=False) for broker in started))
            raise
        unused = [old.broker for name, old in self._open.items() if opened.get(name) is not old]
        self._open = opened
        for broker in unused:
            task = asyncio.ensure_future(_finish_and_close(broker))
            self._closing_tasks.add(task)
            task.add_done_callback(self._closing_tasks.discard)

    def _make_or_keep(self, settings: Settings, name: str, made_generator: Generator | None) -> _OpenGenerator:
        """Return the open generator of this name, or a new one where the settings or the files have changed."""
        current = self._open.get(name)
        if made_generator is not None:
            return self._make_open_generator(settings, name, made_generator, None)
        if current is not None and current.origin is None:
            return current
        origin = read_generator_origin(name, settings)
        if current is not None and current.origin == origin:
            return current
        return self._make_open_generator(settings, name, make_generator(name, settings), origin)

    def _make_open_generator(
        self, settings: Settings, name: str, generator: Generator, origin: GeneratorOrigin | None
    ) -> _OpenGenerator:
        return _OpenGenerator(make_broker(settings, generator, self._cache, self._make_meter(name)), origin)

    async def close(self) -> None:
        """Cancel the generations under way, and close the generators and the cache."""
        closing_tasks = list(self._closing_tasks)
        for task in closing_tasks:
            task.cancel()
        await asyncio.gather(*closing_tasks, return_exceptions=True)
        await asyncio.gather(*(opened.broker.close(closes_cache=False) for opened in self._open.values()))
        await self._cache.close()


async def _finish_and_close(broker: ExpansionBroker) -> None:
    try:
        await broker.finish(FINISH_S)
    finally:
        try:
            await broker.close(closes_cache=False)
        except Exception:
            _log.exception("a generator that is no longer used could not be closed")


@contextlib.asynccontextmanager
async def open_brokers(
    settings: Settings,
    names: Iterable[str] | None = None,
    *,
    made_generators: Mapping[str, Generator] | None = None,
    waits_for_acceptance: bool = False,
    make_meter: Callable[[str], GenerationMeter] | None = None,
) -> AsyncIterator[ExpansionBrokers]:
    """Start generators, and yield brokers over them. All is closed on exit. Raises SettingsError, MissingExtra.

    `names` are the generators to open; None opens those of the top level and of the enabled tables. `made_generators` take
    the place of those of the same name. With `waits_for_acceptance`, cache entries are written after `accept` was called
    for them. `make_meter` gives the meter of the generator with a name.
    """
    cache = make_cache(settings.cache, time.monotonic)
    if waits_for_acceptance:
        cache = HoldingCache(cache, time.monotonic)
    brokers = ExpansionBrokers(cache, make_meter)
    try:
        await cache.start()
        opened_names = settings.list_generator_names() if names is None else names
        await brokers.open_generators(settings, opened_names, made_generators)
        yield brokers
    finally:
        await brokers.close()
