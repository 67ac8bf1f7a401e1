"""Several proxies share a Valkey or Redis. When it is unreachable, searches go on."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from querylift.plugin.broker import ExpansionBroker, Question
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.outcome import Outcome
from querylift.plugin.redis_cache import RedisCache
from querylift.plugin.testing import ManualClock, ScriptedGenerator
from tests.helpers.redis_server import RedisServer, run_redis

QUESTION = Question(ExpansionRequest("download a page"), 1005)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with run_redis(tmp_path) as server:
        yield server


def test_an_expansion_of_one_proxy_serves_another_proxy(redis: RedisServer) -> None:
    async def main() -> None:
        clock = ManualClock()
        generator = ScriptedGenerator({"download a page": Expansion(text="urlopen")})
        broker, other_broker = (
            ExpansionBroker(generator, RedisCache(redis.url, time.monotonic), clock=clock) for _ in range(2)
        )
        assert (await broker.answer(QUESTION)).outcome == Outcome("expanded")
        assert (await other_broker.answer(QUESTION)).outcome == Outcome("cached")
        await broker.close()
        await other_broker.close()

    asyncio.run(main())


def test_a_shared_cache_that_stops_is_a_miss(redis: RedisServer) -> None:
    async def main() -> None:
        generator = ScriptedGenerator({"download a page": Expansion(text="urlopen")})
        broker = ExpansionBroker(generator, RedisCache(redis.url, time.monotonic), clock=ManualClock())
        assert (await broker.answer(QUESTION)).outcome == Outcome("expanded")
        redis.process.kill()
        redis.process.wait()
        assert (await broker.answer(QUESTION)).outcome == Outcome("expanded")
        await broker.close()

    asyncio.run(main())


def test_a_silent_cache_delays_one_search_and_is_then_not_asked_for_a_while() -> None:
    async def main() -> None:
        async def read_without_answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(read_without_answering, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        clock = ManualClock()
        cache = RedisCache(url, clock, timeout_s=0.2)
        async with asyncio.timeout(3):
            assert await cache.get("a") is None  # waits for the timeout
            for _ in range(1000):
                assert await cache.get_two("a", "b") == (None, None)  # does not wait
        await cache.close()
        server.close()

    asyncio.run(main())
