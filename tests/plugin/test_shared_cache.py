"""Several proxies share a Valkey or Redis. When it is unreachable, searches go on."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import find_free_ports
from querylift.plugin.broker import ExpansionBroker, Question
from querylift.plugin.cache import RedisCache
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.outcome import Outcome
from querylift.plugin.testing import ManualClock, ScriptedGenerator

SERVER_PATH = shutil.which("valkey-server") or shutil.which("redis-server")
QUESTION = Question(ExpansionRequest("download a page"), 1005)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    if SERVER_PATH is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    port = find_free_ports(1)[0]
    command = [SERVER_PATH, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        asyncio.run(_wait_until_reachable(f"redis://127.0.0.1:{port}"))
        yield f"redis://127.0.0.1:{port}", process
        process.kill()


async def _wait_until_reachable(url: str) -> None:
    cache = RedisCache(url, time.monotonic, rest_s=0)
    for _ in range(200):
        await cache.set("up", "1", ttl_s=1)
        if await cache.get("up"):
            break
        await asyncio.sleep(0.02)
    await cache.close()


def test_an_expansion_of_one_proxy_serves_another_proxy(redis: tuple[str, subprocess.Popen[bytes]]) -> None:
    async def main() -> None:
        clock = ManualClock()
        generator = ScriptedGenerator({"download a page": Expansion(text="urlopen")})
        broker, other_broker = (
            ExpansionBroker(generator, RedisCache(redis[0], time.monotonic), clock=clock) for _ in range(2)
        )
        assert (await broker.answer(QUESTION)).outcome == Outcome("expanded")
        assert (await other_broker.answer(QUESTION)).outcome == Outcome("cached")
        await broker.close()
        await other_broker.close()

    asyncio.run(main())


def test_a_shared_cache_that_stops_is_a_miss(redis: tuple[str, subprocess.Popen[bytes]]) -> None:
    async def main() -> None:
        generator = ScriptedGenerator({"download a page": Expansion(text="urlopen")})
        broker = ExpansionBroker(generator, RedisCache(redis[0], time.monotonic), clock=ManualClock())
        assert (await broker.answer(QUESTION)).outcome == Outcome("expanded")
        redis[1].kill()
        redis[1].wait()
        assert (await broker.answer(QUESTION)).outcome == Outcome("expanded")
        await broker.close()

    asyncio.run(main())


def test_a_wrong_cache_url_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"cache\.url cannot be used"):
        RedisCache("nonsense://host", time.monotonic)


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
