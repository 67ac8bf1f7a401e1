"""Replicas share a Valkey or Redis; when it is gone, searches go on."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from querylift.index_tools.proxy_process import free_ports
from querylift.plugin.broker import Expander, Question
from querylift.plugin.cache import RedisCache
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import Ask
from querylift.plugin.outcome import Outcome
from querylift.plugin.testing import ManualClock, ScriptedGenerator

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")
QUESTION = Question(Ask("download a page"), 1005)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    if SERVER is None:
        pytest.skip("neither valkey-server nor redis-server is installed")
    port = free_ports(1)[0]
    command = [SERVER, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        asyncio.run(_until_up(f"redis://127.0.0.1:{port}"))
        yield f"redis://127.0.0.1:{port}", process
        process.kill()


async def _until_up(url: str) -> None:
    cache = RedisCache(url, time.monotonic, rest_s=0)
    for _ in range(200):
        await cache.set("up", "1", ttl_s=1)
        if await cache.get("up"):
            break
        await asyncio.sleep(0.02)
    await cache.close()


def test_what_one_replica_made_serves_the_other(redis: tuple[str, subprocess.Popen[bytes]]) -> None:
    async def main() -> None:
        clock = ManualClock()
        generator = ScriptedGenerator({"download a page": Expansion(text="urlopen")})
        first, second = (Expander(generator, RedisCache(redis[0], time.monotonic), clock=clock) for _ in range(2))
        assert (await first.answer(QUESTION)).outcome == Outcome("expanded")
        assert (await second.answer(QUESTION)).outcome == Outcome("cached")
        await first.close()
        await second.close()

    asyncio.run(main())


def test_a_shared_cache_that_goes_away_is_a_miss(redis: tuple[str, subprocess.Popen[bytes]]) -> None:
    async def main() -> None:
        generator = ScriptedGenerator({"download a page": Expansion(text="urlopen")})
        expander = Expander(generator, RedisCache(redis[0], time.monotonic), clock=ManualClock())
        assert (await expander.answer(QUESTION)).outcome == Outcome("expanded")
        redis[1].kill()
        redis[1].wait()
        assert (await expander.answer(QUESTION)).outcome == Outcome("expanded")
        await expander.close()

    asyncio.run(main())


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(SettingsError, match=r"cache\.url cannot be used"):
        RedisCache("nonsense://host", time.monotonic)


def test_a_cache_that_is_silent_costs_one_search_its_timeout_and_then_rests() -> None:
    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        clock = ManualClock()
        cache = RedisCache(url, clock, timeout_s=0.2)
        async with asyncio.timeout(3):
            assert await cache.get("a") is None  # waits
            for _ in range(1000):
                assert await cache.get_two("a", "b") == (None, None)  # does not
        await cache.close()
        server.close()

    asyncio.run(main())
