"""Answer one question for an expansion within its budget: cache, pin, one generation per query at a time."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from querylift.plugin.cache import Cache, decode, encode, key_of
from querylift.plugin.errors import Busy, GeneratorError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import Ask, Generator
from querylift.plugin.outcome import Outcome

_log = logging.getLogger("querylift")


@dataclass(frozen=True, slots=True)
class Question:
    """What the flow needs to go on: an expansion for `ask` before `deadline_s` on the injected clock."""

    ask: Ask
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An expansion and where it came from, or none and why."""

    expansion: Expansion | None
    outcome: Outcome


class Expander:
    """Holds a generator and a cache. A late answer still fills the cache; a late query is held to its order for `pin_s`.

    `clock` gives seconds and never goes back. `max_pending` bounds the generations under way.
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
    ) -> None:
        self.generator = generator
        self._cache = cache
        self._clock = clock
        self._ttl_s = ttl_s
        self._pin_s = pin_s
        self._max_pending = max_pending
        self._pending: dict[str, asyncio.Task[Expansion | None]] = {}
        self._writes: set[asyncio.Task[None]] = set()
        self._pinned_here: set[str] = set()
        self._warned_s = -math.inf

    @property
    def pending(self) -> int:
        """Generations under way."""
        return len(self._pending)

    async def answer(self, question: Question) -> Answer:
        """The answer, not later than the question's deadline. Never raises GeneratorError."""
        left_s = question.deadline_s - self._clock()
        if left_s <= 0:
            return Answer(None, Outcome("late", "budget"))
        key = key_of(self.generator, question.ask)
        try:
            kept = self._kept(*self._cache.at_hand("pin:" + key, key))
            if kept is not None:
                return kept
            async with asyncio.timeout(left_s if left_s < math.inf else None):
                return await self._answer(key, question.ask)
        except TimeoutError:
            self._pin(key)
            return Answer(None, Outcome("late", "budget"))
        except Busy:
            self._pin(key)
            return Answer(None, Outcome("skipped", "busy"))
        except GeneratorError as error:
            self._warn(error)
            self._pin(key)
            return Answer(None, Outcome("error", "generator"))
        except Exception:
            _log.exception("a fault in the cache or the expander; the original search is sent")
            return Answer(None, Outcome("error", "internal"))

    async def close(self) -> None:
        """Stop what is under way and release the generator and the cache."""
        tasks = [*self._pending.values(), *self._writes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.generator.close()
        await self._cache.close()

    async def _answer(self, key: str, ask: Ask) -> Answer:
        kept = self._kept(*await self._cache.get_two("pin:" + key, key))
        if kept is not None:
            return kept
        task = self._pending.get(key)
        if task is None:
            if len(self._pending) >= self._max_pending:
                self._pin(key)
                return Answer(None, Outcome("skipped", "busy"))
            task = self._begin(key, ask)
        # Shielded: when this search stops waiting, the generation goes on and fills the cache.
        answered = _answered(await asyncio.shield(task), Outcome("expanded"))
        if key in self._pinned_here:  # somebody who asked a moment earlier was too early, and their pages must agree
            return Answer(None, Outcome("late", "pinned"))
        return answered

    def _kept(self, pinned: str | None, kept: str | None) -> Answer | None:
        """The answer that the cache holds, if any."""
        if pinned is not None and self._pin_s:
            return Answer(None, Outcome("late", "pinned"))
        if kept is None:
            return None
        try:
            return _answered(decode(kept), Outcome("cached"))
        except ValueError:
            _log.warning("a cached expansion could not be read and is made again")
            return None

    def _begin(self, key: str, ask: Ask) -> asyncio.Task[Expansion | None]:
        task = asyncio.ensure_future(self._generate(key, ask))
        self._pending[key] = task
        task.add_done_callback(lambda done: self._finish(key, done))
        return task

    def _finish(self, key: str, task: asyncio.Task[Expansion | None]) -> None:
        self._pending.pop(key, None)
        asyncio.get_running_loop().call_later(1, self._pinned_here.discard, key)  # once those that wait have looked
        if not task.cancelled():
            task.exception()  # fetched, so that asyncio does not report one that nobody waited for

    async def _generate(self, key: str, ask: Ask) -> Expansion | None:
        try:
            expansion = await self.generator.expand(ask)
        except GeneratorError:
            raise
        except Exception as error:
            raise GeneratorError(f"{type(self.generator).__name__} failed: {type(error).__name__}") from error
        self._keep(key, encode(expansion), self._ttl_s)
        return expansion

    def _warn(self, error: GeneratorError) -> None:
        """Say why there is no expansion, at most once a second: an outage must not fill the log."""
        if self._clock() - self._warned_s >= 1:
            self._warned_s = self._clock()
            _log.warning("no expansion: %s", error)

    def _pin(self, key: str) -> None:
        """Hold this query to an answer without expansion for a while, so that its next page ranks like this one."""
        if self._pin_s:
            if key in self._pending:
                self._pinned_here.add(key)
            self._keep("pin:" + key, "1", self._pin_s)

    def _keep(self, key: str, value: str, ttl_s: float) -> None:
        """Write to the cache in the background: a shared one may be slow, and nobody is to wait for it."""
        task = asyncio.ensure_future(self._write(key, value, ttl_s))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self, key: str, value: str, ttl_s: float) -> None:
        try:
            await self._cache.set(key, value, ttl_s=ttl_s)
        except Exception:
            _log.exception("an expansion could not be kept")


def _answered(expansion: Expansion | None, outcome: Outcome) -> Answer:
    return Answer(None, Outcome("skipped", "nothing")) if expansion is None else Answer(expansion, outcome)
