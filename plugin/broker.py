"""Answer a question for an expansion within its time budget: cache, pins, and one generation per query at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field

from cachetools import LRUCache

from querylift.plugin.cache import Cache, cache_key, decode_expansion, encode_expansion, make_cache
from querylift.plugin.cache_faults import CacheFaults
from querylift.plugin.errors import GeneratorBusy, GeneratorError
from querylift.plugin.expansion import Expansion
from querylift.plugin.experiments import Assignment
from querylift.plugin.generation_meter import GenerationMeter, attach_meter
from querylift.plugin.generation_times import GenerationTimes, get_expected_duration_s
from querylift.plugin.generators.base import ExpansionRequest, Generator
from querylift.plugin.holding_cache import HoldingCache
from querylift.plugin.outcome import Outcome
from querylift.plugin.settings import Settings
from querylift.plugin.shared_pins import PIN_PREFIX
from querylift.plugin.warning_pause import WarningPause

_log = logging.getLogger("querylift")

_LATE_PIN, _FAILED_PIN, _NO_PIN = "late", "failed", ""
"""The values of a pin. After a late answer only later pages stay without an expansion, after a failure all pages do."""

_CACHED = Outcome("cached")
_MAX_DECODED = 256
"""Expansions that are held as objects. One with 40 terms and 200 documents takes about 40 KB."""


@dataclass(frozen=True, slots=True)
class Question:
    """A flow needs an expansion for `request`, before `deadline_s` on the broker's clock.

    `shows_words` is true when the engine's answer will show the words of the rewritten query. `client` is any text that
    tells clients apart. `continues_hits` says that the search asks for a later page of hits. `generators` names those that
    may answer, in this order; a broker with one generator ignores it. `ttl_s` is how long the expansion is cached, and None
    stands for the broker's own time. `assignment` is that of a search in an experiment.
    """

    request: ExpansionRequest
    deadline_s: float
    shows_words: bool = False
    client: str = ""
    continues_hits: bool = False
    generators: tuple[str, ...] = ()
    ttl_s: float | None = None
    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An expansion, or None. The outcome says where the expansion came from, or why there is none.

    `cache_keys` are for `accept`. There are none when the cache was not asked.
    """

    expansion: Expansion | None
    outcome: Outcome
    cache_keys: tuple[str, ...] = field(default=(), compare=False)


MAX_PENDING_PER_CLIENT = 32
"""So one client, or one `_msearch`, cannot take all the generations that may be under way."""


class ExpansionBroker:
    """Holds a generator and a cache. An expansion that comes too late still goes into the cache.

    No search waits for a generator that usually takes longer than the search's budget. The expansion is then made for
    later searches.

    A query whose first page got no expansion is pinned: for `pin_s` its later pages get none either. After the generator
    failed, the first page gets none too, so that the generator is not asked again at once. A full queue pins nothing:
    otherwise a client that floods the proxy would pin everybody's queries.

    `clock` gives seconds and never goes back. `max_pending` limits the generations under way, and
    `max_pending_per_client` those of one client. `meter` is told what the generator does.
    """

    def __init__(
        self,
        generator: Generator,
        cache: Cache,
        *,
        clock: Callable[[], float],
        ttl_s: float = 86_400,
        pin_s: float = 120,
        max_pending: int = 256,
        max_pending_per_client: int = MAX_PENDING_PER_CLIENT,
        meter: GenerationMeter | None = None,
    ) -> None:
        self.generator = generator
        self._cache = cache
        self._clock = clock
        self._ttl_s = ttl_s
        self._pin_s = pin_s
        self._max_pending = max_pending
        self._max_pending_per_client = max_pending_per_client
        self._pending_by_client: Counter[str] = Counter()
        self._generations: dict[str, asyncio.Task[Expansion | None]] = {}
        self._cache_writes: set[asyncio.Task[None]] = set()
        self._keys_pinned_while_pending: set[str] = set()
        self._times = GenerationTimes(get_expected_duration_s(generator))
        self._meter = meter or GenerationMeter()
        attach_meter(generator, self._meter)
        self._warning_pause = WarningPause(1, clock)
        self._decoded: LRUCache[str, Expansion | None] = LRUCache(_MAX_DECODED)

    @property
    def pending_count(self) -> int:
        """The number of generations under way."""
        return len(self._generations)

    @property
    def cache_faults(self) -> CacheFaults:
        """What the cache could not read or write."""
        return self._cache.faults

    async def answer(self, question: Question) -> Answer:
        """Return an answer before the question's deadline. Never raises GeneratorError."""
        budget_s = question.deadline_s - self._clock()
        if budget_s <= 0:
            return Answer(None, Outcome("late", "budget"))
        if (reason := self._find_privacy_reason(question)) is not None:
            return Answer(None, Outcome("skipped", reason))
        key = cache_key(self.generator, question.request)
        answer = await self._answer_by_key(key, question, budget_s)
        return Answer(answer.expansion, answer.outcome, (key,))

    def accept(self, cache_keys: tuple[str, ...]) -> None:
        """Note that the engine accepted the search of an answer, so that its cache entries may be written."""
        if not isinstance(self._cache, HoldingCache):
            return
        for key in cache_keys:
            entries = (PIN_PREFIX + key, key)
            if key in self._generations or self._cache.holds_any(*entries):  # a cached answer has nothing to write
                self._run_in_background(self._cache.accept(*entries))

    async def _answer_by_key(self, key: str, question: Question, budget_s: float) -> Answer:
        """Return what the cache holds, or what the generator makes within `budget_s`. Never raises GeneratorError."""
        try:
            cached_answer = self._read_cached_answer(key, question, *self._cache.peek_two(PIN_PREFIX + key, key))
            if cached_answer is not None:
                return cached_answer
            async with asyncio.timeout(budget_s if budget_s < math.inf else None):
                return await self._wait_for_answer(key, question)
        except TimeoutError:
            self._pin_query(key, _LATE_PIN)
            return Answer(None, Outcome("late", "budget"))
        except GeneratorBusy:
            return Answer(None, Outcome("skipped", "busy"))
        except GeneratorError:
            return Answer(None, Outcome("error", "generator"))
        except Exception:
            _log.exception("the cache or the broker has a fault; the original search is sent")
            return Answer(None, Outcome("error", "internal"))

    async def finish(self, limit_s: float) -> None:
        """Wait for the generations and cache writes under way, at most `limit_s` seconds."""
        tasks = [*self._generations.values(), *self._cache_writes]
        if tasks:
            await asyncio.wait(tasks, timeout=limit_s)

    async def close(self, *, closes_cache: bool = True) -> None:
        """Cancel the generations under way, and close the generator and perhaps the cache."""
        tasks = [*self._generations.values(), *self._cache_writes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.generator.close()
        if closes_cache:
            await self._cache.close()

    def _find_privacy_reason(self, question: Question) -> str | None:
        """Return why an expansion could tell the client words of documents that it may not read, or None."""
        if self.generator.reads_index and question.shows_words:
            return "explain"
        if self.generator.uses_account and not _is_one_index(question.request.index):
            return "pattern"
        return None

    async def _wait_for_answer(self, key: str, question: Question) -> Answer:
        """Return what the cache holds, or wait for the generation, which is started when none is under way."""
        pin, encoded_expansion = await self._cache.get_two(PIN_PREFIX + key, key)
        cached_answer = self._read_cached_answer(key, question, pin, encoded_expansion)
        if cached_answer is not None:
            return cached_answer
        if question.continues_hits and key in self._keys_pinned_while_pending:
            return Answer(None, Outcome("late", "pinned"))
        generation = self._generations.get(key)
        if generation is None:
            if self._is_full_for(question.client):
                return Answer(None, Outcome("skipped", "busy"))
            generation = self._start_generation(key, question)
        if self._times.typical_s > question.deadline_s - self._clock():
            self._pin_query(key, _LATE_PIN)
            return Answer(None, Outcome("late", "warming"))
        # Shielded: when this search stops waiting, the generation goes on and fills the cache.
        answer = _make_answer(await asyncio.shield(generation), Outcome("expanded"))
        if pin or key in self._keys_pinned_while_pending:
            self._unpin_query(key)
        return answer

    def _read_cached_answer(
        self, key: str, question: Question, pin: str | None, encoded_expansion: str | None
    ) -> Answer | None:
        """Return the answer that two cache values give, or None when they give none."""
        if pin and self._pin_s and (question.continues_hits or pin == _FAILED_PIN):
            return Answer(None, Outcome("late", "pinned"))
        if encoded_expansion is None:
            return None
        try:
            answer = _make_answer(self._decode_expansion(encoded_expansion), _CACHED)
        except ValueError:
            _log.warning("a cached expansion could not be read and is made again")
            return None
        if pin:
            self._unpin_query(key)
        return answer

    def _decode_expansion(self, value: str) -> Expansion | None:
        """Return the expansion of a cache value. The last ones are remembered, as decoding takes long. Raises ValueError."""
        try:
            return self._decoded[value]
        except KeyError:
            expansion = self._decoded[value] = decode_expansion(value)
            return expansion

    def _is_full_for(self, client: str) -> bool:
        is_full_for_client = self._pending_by_client[client] >= self._max_pending_per_client
        return is_full_for_client or len(self._generations) >= self._max_pending

    def _start_generation(self, key: str, question: Question) -> asyncio.Task[Expansion | None]:
        generation = asyncio.ensure_future(self._generate_and_cache(key, question))
        self._generations[key] = generation
        self._meter.add_pending(1)
        self._pending_by_client[question.client] += 1
        generation.add_done_callback(lambda task: self._forget_generation(key, question.client, task))
        return generation

    def _forget_generation(self, key: str, client: str, generation: asyncio.Task[Expansion | None]) -> None:
        self._generations.pop(key, None)
        self._meter.add_pending(-1)
        self._pending_by_client[client] -= 1
        if not self._pending_by_client[client]:
            del self._pending_by_client[client]
        # The searches that wait for this generation look at the set first; a second is enough for that.
        asyncio.get_running_loop().call_later(1, self._keys_pinned_while_pending.discard, key)
        if not generation.cancelled():
            generation.exception()  # fetched, because asyncio reports an exception that nobody fetches

    async def _generate_and_cache(self, key: str, question: Question) -> Expansion | None:
        """Return a new expansion. A failure is logged and pinned here, because perhaps no search waits for it."""
        started_s = self._clock()
        try:
            expansion = await self._generate(question.request)
        except GeneratorBusy:  # it came at once, and says nothing about the time that an expansion takes
            self._meter.count_failure("busy")
            raise
        except GeneratorError as error:
            self._note_duration(self._clock() - started_s)
            self._meter.count_failure("failed")
            self._log_generator_error(error)
            self._pin_query(key, _FAILED_PIN)
            raise
        self._note_duration(self._clock() - started_s)
        ttl_s = self._ttl_s if question.ttl_s is None else question.ttl_s
        self._write_to_cache_later(key, encode_expansion(expansion), ttl_s)
        return expansion

    def _note_duration(self, duration_s: float) -> None:
        self._times.add_duration(duration_s)
        self._meter.add_duration(duration_s)

    async def _generate(self, request: ExpansionRequest) -> Expansion | None:
        """Ask the generator. Every fault of its own is a GeneratorError."""
        try:
            return await self.generator.expand(request)
        except GeneratorError:
            raise
        except Exception as error:
            raise GeneratorError(f"{type(self.generator).__name__} failed: {type(error).__name__}") from error

    def _log_generator_error(self, error: GeneratorError) -> None:
        """Log the error, at most once a second: an outage must not fill the log."""
        if self._warning_pause.take_turn():
            _log.warning("no expansion: %s", error)

    def _pin_query(self, key: str, pin: str) -> None:
        """Answer later pages of this query without an expansion for a while, so that they rank like this one."""
        if self._pin_s:
            if key in self._generations:
                self._keys_pinned_while_pending.add(key)
            self._write_to_cache_later(PIN_PREFIX + key, pin, self._pin_s)

    def _unpin_query(self, key: str) -> None:
        """Let later pages have the expansion: the latest first page had it, and they must agree with that one."""
        self._keys_pinned_while_pending.discard(key)
        self._write_to_cache_later(PIN_PREFIX + key, _NO_PIN, self._pin_s or 1)

    def _write_to_cache_later(self, key: str, value: str, ttl_s: float) -> None:
        """Write to the cache in the background. A shared cache may be slow, and no search should wait for it."""
        self._run_in_background(self._write_to_cache(key, value, ttl_s))

    def _run_in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._cache_writes.add(task)
        task.add_done_callback(self._cache_writes.discard)

    async def _write_to_cache(self, key: str, value: str, ttl_s: float) -> None:
        try:
            await self._cache.set(key, value, ttl_s=ttl_s)
        except Exception:
            _log.exception("an expansion could not be written to the cache")


def _is_one_index(expression: str) -> bool:
    """Whether an index expression is one name. An engine leaves out those of several indices that a client may not read."""
    return not set(expression) & set("*,") and expression != "_all"


def _make_answer(expansion: Expansion | None, outcome: Outcome) -> Answer:
    return Answer(None, Outcome("skipped", "nothing")) if expansion is None else Answer(expansion, outcome)


def make_broker(
    settings: Settings, generator: Generator, cache: Cache, meter: GenerationMeter | None = None
) -> ExpansionBroker:
    """Return a broker with the times of the settings over `generator`, which is not started."""
    ttl_s, pin_s = settings.cache.ttl_s, settings.cache.pin_s
    return ExpansionBroker(generator, cache, clock=time.monotonic, ttl_s=ttl_s, pin_s=pin_s, meter=meter)


@contextlib.asynccontextmanager
async def open_broker(settings: Settings, generator: Generator) -> AsyncIterator[ExpansionBroker]:
    """Start `generator` and yield a broker over it. Both are closed on exit. Raises SettingsError, MissingExtra."""
    cache = make_cache(settings.cache, time.monotonic)
    broker = make_broker(settings, generator, cache)
    try:
        await cache.start()
        await generator.start()
        yield broker
    finally:
        await broker.close()
