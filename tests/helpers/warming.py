"""A generator that fails on demand, a store in memory, and readers of tables, for the tests of warming."""

import asyncio
import json
from pathlib import Path
from typing import Any

from querylift.plugin.cache import cache_key
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.table import TableGenerator
from querylift.plugin.testing import ScriptedGenerator
from querylift.plugin.warming.planning import RequestPlanner, WarmingPlan, plan_warming
from querylift.plugin.warming.query_log import QueryLog
from querylift.plugin.warming.runner import WarmingCounts, WarmingRunner

PAGE = Expansion(text="urlopen fetches")
QUERIES = (
    "what causes a rainbow", "how to compress a folder", "vitamin D deficiency symptoms", "why do cats purr",
    "history of the steam engine", "treatment of acute bronchitis", "best time to plant tomatoes",
    "how are volcanoes formed", "effects of sleep on memory", "what is a black hole", "cheap flights to lisbon",
    "okay here is a question about the weather",
)  # fmt: skip


class MemoryStore:
    """A store in memory. It answers `stored_queries` from the start, and lists the queries that it saves."""

    def __init__(self, *stored_queries: str) -> None:
        self.stored_queries = set(stored_queries)
        self.saved_queries: list[str] = []

    async def has_answer(self, request: ExpansionRequest) -> bool:
        """Whether the query was stored from the start."""
        return request.text in self.stored_queries

    async def save(self, request: ExpansionRequest, expansion: Expansion | None) -> None:
        """List the query, after a moment in which the run may be cancelled."""
        await asyncio.sleep(0.01)
        self.saved_queries.append(request.text)


class FailingGenerator(ScriptedGenerator):
    """Raises the errors listed for a query, one per call, and then answers PAGE."""

    def __init__(self, errors: dict[str, list[Exception]], *, delay_s: float = 0) -> None:
        super().__init__({}, delay_s=delay_s)
        self.errors = errors
        self.running_count = 0
        self.highest_running_count = 0

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Raise the query's next error, or answer."""
        self.running_count += 1
        self.highest_running_count = max(self.running_count, self.highest_running_count)
        try:
            await super().expand(request)
        finally:
            self.running_count -= 1
        if self.errors.get(request.text):
            raise self.errors[request.text].pop(0)
        return PAGE


def make_requests(*queries: str) -> tuple[ExpansionRequest, ...]:
    """A request for each query."""
    return tuple(ExpansionRequest(query) for query in queries)


def plan_queries(queries: tuple[str, ...], planner: RequestPlanner, generator: ScriptedGenerator) -> WarmingPlan:
    """The plan for a log of these queries and the cache of `generator`."""
    log = QueryLog(len(queries), queries)
    return plan_warming(log, planner, make_key=lambda request: cache_key(generator, request))


def run_warming(generator: ScriptedGenerator, store: Any, *queries: str, concurrency: int = 2) -> WarmingCounts:
    """Warm the queries without pauses and return the counts."""
    counts = WarmingCounts(distinct_count=len(queries))
    done_calls: list[None] = []
    runner = WarmingRunner(generator, store, counts, concurrency=concurrency, sleep=skip_sleep)
    asyncio.run(runner.run(make_requests(*queries), lambda: done_calls.append(None)))
    assert len(done_calls) == len(queries)
    assert counts.remaining_count == 0
    return counts


async def skip_sleep(seconds: float) -> None:
    """Let other tasks run, and take no time."""
    await asyncio.sleep(0)


def read_expansions(table_path: Path, *queries: str) -> list[Expansion | None]:
    """The expansions that a table serves for the queries."""

    async def expand_all() -> list[Expansion | None]:
        table = TableGenerator(table_path)
        await table.start()
        return [await table.expand(ExpansionRequest(query)) for query in queries]

    return asyncio.run(expand_all())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
