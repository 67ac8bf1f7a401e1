"""Warmed expansions are in the proxy's cache, where a served search finds them."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import find_free_ports
from querylift.plugin.broker import ExpansionBroker
from querylift.plugin.cache import FileCache, MemoryCache, cache_key, encode_expansion
from querylift.plugin.errors import QueryliftError, SettingsError
from querylift.plugin.flow import ExpansionRules, Search, make_match_body, run_flow_async, search_flow
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.outcome import Outcome
from querylift.plugin.settings import parse_settings
from querylift.plugin.settings_tables.generators import CacheSettings
from querylift.plugin.testing import ManualClock, ScriptedGenerator
from querylift.plugin.warming.cache_store import CacheStore, open_cache_store
from querylift.plugin.warming.planning import make_request_planner
from querylift.plugin.warming.runner import WarmingCounts, WarmingRunner
from tests.helpers.warming import PAGE, make_requests, plan_queries, skip_sleep

SERVER_PATH = shutil.which("valkey-server") or shutil.which("redis-server")


@pytest.mark.parametrize("reads_index", [False, True])
def test_a_served_search_finds_the_warmed_expansion(tmp_path: Path, reads_index: bool) -> None:
    """The key of a generator that reads the index also holds the index and its fields."""
    tables = {"index": {"docs": {"fields": ["title", "text"]}}, "cache": {"file": str(tmp_path / "kept.db")}}
    settings = parse_settings(tables)
    generator = ScriptedGenerator({"axon terminal": PAGE})
    generator.reads_index = reads_index

    async def main() -> None:
        planner = make_request_planner(settings, "none", generator, "docs")
        requests = plan_queries(("axon  terminal", "nothing to add"), planner, generator).requests
        async with open_cache_store(settings.cache, generator) as store:
            await WarmingRunner(generator, store, WarmingCounts(), concurrency=2).run(requests, lambda: None)
        broker = ExpansionBroker(generator, FileCache(tmp_path / "kept.db", 9, time.monotonic), clock=time.monotonic)
        rules = ExpansionRules(settings, clock=time.monotonic)
        for field, query, outcome in (
            ("text", "axon terminal", Outcome("cached")),
            ("title", " axon terminal", Outcome("cached")),
            ("text", "nothing to add", Outcome("skipped", "nothing")),
        ):
            flow = search_flow(Search("docs", make_match_body(query, field)), rules)
            assert (await run_flow_async(flow, broker.answer)).outcome == outcome
        await broker.close()
        assert sorted(generator.queries) == ["axon terminal", "nothing to add"]

    asyncio.run(main())


def test_an_entry_that_is_damaged_or_expired_is_not_an_answer(tmp_path: Path) -> None:
    async def main() -> None:
        generator, clock = ScriptedGenerator({}), ManualClock()
        cache = FileCache(tmp_path / "kept.db", 9, clock, wall_clock=clock)
        store = CacheStore(generator, write_cache=cache, read_cache=cache, ttl_s=60)
        values = {
            "old": encode_expansion(PAGE),
            "damaged": "{",
            "fine": encode_expansion(PAGE),
            "nothing": encode_expansion(None),
        }
        for query, value in values.items():
            key = cache_key(generator, ExpansionRequest(query))
            await cache.set(key, value, ttl_s=5 if query == "old" else 100)
        clock.advance(6)
        requests = make_requests("old", "damaged", "never", "fine", "nothing")
        assert [await store.has_answer(request) for request in requests] == [False, False, False, True, True]
        await store.save(ExpansionRequest("old"), PAGE)
        clock.advance(59)
        assert await store.has_answer(ExpansionRequest("old"))
        clock.advance(2)
        assert not await store.has_answer(ExpansionRequest("old"))
        await cache.close()

    asyncio.run(main())


def test_a_cache_that_drops_values_without_an_error_is_noticed() -> None:
    class DroppingCache(MemoryCache):
        """Drops every value and reports no error, like a cache file on a full disk."""

        async def set(self, key: str, value: str, *, ttl_s: float) -> None:
            self.write_count = getattr(self, "write_count", 0) + 1

    cache = DroppingCache(9, time.monotonic)
    store = CacheStore(ScriptedGenerator({}), write_cache=cache, read_cache=cache, ttl_s=9, sleep=skip_sleep)
    with pytest.raises(QueryliftError, match="the cache keeps no more entries: it is full or unreachable"):
        asyncio.run(store.save(ExpansionRequest("a"), PAGE))
    assert cache.write_count == 4


def test_a_cache_file_drops_the_oldest_entries(tmp_path: Path) -> None:
    """They would be the most frequent queries. So warming makes no more than cache.size expansions."""

    async def main() -> list[bool]:
        cache = FileCache(tmp_path / "kept.db", 10, time.monotonic)
        for i in range(1000):
            await cache.set(str(i), "x", ttl_s=100 + i)
        await cache.close()
        reopened_cache = FileCache(tmp_path / "kept.db", 10, time.monotonic)
        is_cached = [await reopened_cache.get(str(i)) is not None for i in range(1000)]
        await reopened_cache.close()
        return is_cached

    assert asyncio.run(main()) == [False] * 990 + [True] * 10


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A Valkey or Redis: its URL and its process."""
    if SERVER_PATH is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    port = find_free_ports(1)[0]
    command = [SERVER_PATH, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        yield f"redis://127.0.0.1:{port}", process
        process.kill()


def test_a_shared_cache_serves_every_proxy_and_a_run_ends_when_it_is_unreachable(
    redis: tuple[str, "subprocess.Popen[bytes]"],
) -> None:
    url, process = redis
    settings = parse_settings({"cache": {"url": url}}).cache
    generator = ScriptedGenerator({"a": PAGE})

    async def main() -> None:
        async with asyncio.timeout(30):
            while not await _is_reachable(settings, generator):
                await asyncio.sleep(0.1)
        async with open_cache_store(settings, generator) as store, open_cache_store(settings, generator) as other_store:
            await store.save(ExpansionRequest("a"), PAGE)
            assert await other_store.has_answer(ExpansionRequest("a"))
            assert not await other_store.has_answer(ExpansionRequest("b"))
            process.kill()
            process.wait()
            impatient_store = CacheStore(
                generator,
                write_cache=store._write_cache,
                read_cache=store._read_cache,
                ttl_s=9,
                sleep=skip_sleep,
            )
            with pytest.raises(QueryliftError, match="keeps no more entries"):
                await impatient_store.save(ExpansionRequest("b"), PAGE)
        with pytest.raises(SettingsError, match=r"^cache\.url does not keep what is written to it"):
            async with open_cache_store(settings, generator):
                pass

    asyncio.run(main())


async def _is_reachable(settings: CacheSettings, generator: ScriptedGenerator) -> bool:
    try:
        async with open_cache_store(settings, generator):
            return True
    except SettingsError:
        return False
