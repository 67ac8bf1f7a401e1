"""Make the planned expansions that a store does not hold yet."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from querylift.plugin.errors import GeneratorBusy, GeneratorError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest, Generator
from querylift.plugin.settings import Settings
from querylift.plugin.warming.planning import WarmingPlan
from querylift.plugin.warming.query_log import QueryLog

Sleep = Callable[[float], Awaitable[None]]

DEFAULT_CONCURRENCY = 16
"""Requests under way for a generator that has no slots of its own."""
_MODEL_TIME_LIMIT_S = 86_400.0
_ENDPOINT_TIME_LIMIT_S = 60.0
_PAUSES_BEFORE_RETRY_S = (0.5, 4.0)
_POLL_S = 0.05
_WORKER_RESTART_LIMIT_S = 120.0
"""How long to wait for a model's worker process that ended."""


@dataclass(slots=True)
class WarmingCounts:
    """The counts of one run. They are true at any time, however the run ends. `first_failure` holds no query text."""

    query_count: int = 0
    distinct_count: int = 0
    skip_counts: Counter[str] = field(default_factory=Counter)
    made_count: int = 0
    stored_count: int = 0
    failed_count: int = 0
    first_failure: str = ""
    duration_s: float = 0.0

    @property
    def remaining_count(self) -> int:
        """The number of distinct queries that were not handled."""
        handled_count = self.made_count + self.stored_count + self.failed_count + self.skip_counts.total()
        return self.distinct_count - handled_count

    def count_plan(self, log: QueryLog, plan: WarmingPlan) -> None:
        """Count the queries that there are, and those that are skipped."""
        self.query_count = log.query_count
        self.skip_counts.update(plan.skip_counts)
        self.distinct_count = len(plan.requests) + self.skip_counts.total()

    def count_failure(self, error: GeneratorError) -> None:
        """Count a query that failed, and remember the first error."""
        self.failed_count += 1
        self.first_failure = self.first_failure or str(error)

    def format_summary(self) -> str:
        """Return "9 queries, 7 distinct: 4 made, 1 already there, 2 skipped (code 1, quoted 1), 0 failed; ..."."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.skip_counts.items()))
        parts = [f"{self.made_count} made", f"{self.stored_count} already there"]
        parts.append(f"{self.skip_counts.total()} skipped" + (f" ({reasons})" if reasons else ""))
        parts.append(f"{self.failed_count} failed")
        if self.remaining_count:
            parts.append(f"{self.remaining_count} left")
        speed = self.made_count / self.duration_s if self.duration_s else 0.0
        totals = f"{self.query_count} queries, {self.distinct_count} distinct"
        return f"{totals}: {', '.join(parts)}; {speed:.1f} made a second"


class ExpansionStore(Protocol):
    """Keeps the expansions that warming makes."""

    async def has_answer(self, request: ExpansionRequest) -> bool:
        """Whether the store holds the generator's answer to `request`, so that it need not be asked."""
        ...

    async def save(self, request: ExpansionRequest, expansion: Expansion | None) -> None:
        """Keep an expansion. Raises GeneratorError when this one cannot be kept, QueryliftError when none can."""
        ...


def relax_time_limits(settings: Settings) -> Settings:
    """Return `settings` with longer time limits, for a run in which no user waits. The expansions stay the same."""
    # A model's worker process that hangs is noticed without its time limit.
    llama = settings.llama.model_copy(update={"max_seconds": _MODEL_TIME_LIMIT_S})
    http = settings.http.model_copy(update={"max_seconds": max(settings.http.max_seconds, _ENDPOINT_TIME_LIMIT_S)})
    return settings.model_copy(update={"llama": llama, "http": http})


def choose_concurrency(settings: Settings, name: str) -> int:
    """Return how many requests to have under way: enough to occupy the generator, and no more than it accepts."""
    if name.partition(":")[0] == "llama":
        return settings.llama.slots + settings.llama.queue_size
    return DEFAULT_CONCURRENCY


@contextlib.asynccontextmanager
async def open_generator(settings: Settings, name: str) -> AsyncIterator[Generator]:
    """Start the generator `name`, with longer time limits. It is closed on exit."""
    from querylift.plugin.generators.factory import make_generator

    generator = make_generator(name, relax_time_limits(settings))
    try:
        await generator.start()
        yield generator
    finally:
        await generator.close()


class WarmingRunner:
    """Has a generator make the expansions that a store lacks, `concurrency` at a time, and counts them.

    Cancelling `run` abandons the requests under way. Expansions that were made are kept.
    """

    def __init__(
        self,
        generator: Generator,
        store: ExpansionStore,
        counts: WarmingCounts,
        *,
        concurrency: int,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._generator = generator
        self._store = store
        self._counts = counts
        self._concurrency = concurrency
        self._sleep = sleep
        self._last_try_lock = asyncio.Lock()
        self._failures_in_a_row = 0
        # So many failures mean that every request under way failed twice, and a few failed alone.
        self._failures_before_giving_up = 2 * concurrency + 10

    async def run(self, requests: Sequence[ExpansionRequest], on_done: Callable[[], None]) -> None:
        """Make an expansion for every request that the store lacks, and call `on_done` after each request.

        Raises QueryliftError when the store cannot save any more, for example because the disc is full.
        """
        started_s = time.monotonic()
        queue = iter(requests)
        worker_count = min(self._concurrency, len(requests))
        tasks = [asyncio.ensure_future(self._work_through(queue, on_done)) for _ in range(worker_count)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._counts.duration_s += time.monotonic() - started_s

    async def _work_through(self, queue: Iterator[ExpansionRequest], on_done: Callable[[], None]) -> None:
        for request in queue:
            try:
                await self._handle_request(request)
            except GeneratorError as error:
                self._counts.count_failure(error)
            on_done()

    async def _handle_request(self, request: ExpansionRequest) -> None:
        if await self._store.has_answer(request):
            self._counts.stored_count += 1
            return
        expansion = await self._generate_with_retries(request)
        await _finish_despite_cancel(self._save_and_count(request, expansion))

    async def _save_and_count(self, request: ExpansionRequest, expansion: Expansion | None) -> None:
        await self._store.save(request, expansion)
        self._counts.made_count += 1

    async def _generate_with_retries(self, request: ExpansionRequest) -> Expansion | None:
        """Ask the generator up to three times. Ask only once when too many requests failed in a row."""
        for pause_s in _PAUSES_BEFORE_RETRY_S:
            try:
                return await self._generate_once(request)
            except GeneratorError:
                if not self._should_retry():
                    raise
            await self._sleep(pause_s)
        # Last tries go one at a time: a query that ends the worker process should harm few others.
        async with self._last_try_lock:
            return await self._generate_once(request)

    async def _generate_once(self, request: ExpansionRequest) -> Expansion | None:
        try:
            expansion = await self._generate_when_accepted(request)
        except Exception as error:
            self._failures_in_a_row += 1
            if isinstance(error, GeneratorError):
                raise
            raise GeneratorError(f"{type(self._generator).__name__} failed: {type(error).__name__}") from error
        self._failures_in_a_row = 0
        return expansion

    async def _generate_when_accepted(self, request: ExpansionRequest) -> Expansion | None:
        await self._wait_for_worker_process()
        while True:
            try:
                return await self._generator.expand(request)
            except GeneratorBusy:
                await self._sleep(_POLL_S)

    async def _wait_for_worker_process(self) -> None:
        """Wait while a generator that uses a worker process has none. Without one every request would fail."""
        waited_s = 0.0
        while (
            getattr(self._generator, "pid", 0) is None and waited_s < _WORKER_RESTART_LIMIT_S and self._should_retry()
        ):
            await self._sleep(_POLL_S)
            waited_s += _POLL_S

    def _should_retry(self) -> bool:
        return self._failures_in_a_row < self._failures_before_giving_up


async def _finish_despite_cancel(operation: Awaitable[None]) -> None:
    """Await an operation to its end, even when this task is cancelled meanwhile."""
    task = asyncio.ensure_future(operation)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
