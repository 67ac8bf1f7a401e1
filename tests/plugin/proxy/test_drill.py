"""Failure drill against a real engine: every search answers as it would without us, nothing hangs, nothing leaks."""

import asyncio
import gzip
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.engine import Engine, make_index_action
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import Generator
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.plugin.generators.llama.model_file import find_packaged_model
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.relay import Relay, run_relay
from tests.helpers.upstream_stub import RunningProxy, run_proxy

pytestmark = pytest.mark.engine
INDEX = "drill"
TEXTS = {
    "urlopen": "Open a URL and fetch the page behind it.",
    "zipfile": "Read and write archives in the ZIP format; compress a folder.",
    "random": "Draw a number by chance, shuffle a list.",
    "sched": "Run a function later, again and again.",
    "filler": "word " * 20_000,
}
QUERY = "compress a folder"
BODY = {"query": {"match": {"text": QUERY}}}
GREEDY = ScriptedGenerator({QUERY: Expansion(text="archives zip format")})
Drill = Callable[[aiohttp.ClientSession, RunningProxy], Awaitable[None]]


@pytest.fixture(scope="module")
def engine_url(opensearch: str) -> Iterator[str]:
    with Engine(parse_settings({"engine": opensearch})) as engine:
        if engine.has_index(INDEX):
            engine.call("DELETE", f"/{INDEX}")
        mappings = {"properties": {"text": {"type": "text", "analyzer": "english"}}}
        engine.call("PUT", f"/{INDEX}", {"settings": {"number_of_replicas": 0}, "mappings": mappings})
        assert all(
            ok
            for ok, _ in engine.send_bulk_actions(
                make_index_action(INDEX, name, {"text": text}) for name, text in TEXTS.items()
            )
        )
        engine.call("POST", f"/{INDEX}/_refresh")
        yield opensearch
        engine.call("DELETE", f"/{INDEX}")


def _run(engine_url: str, drill: Drill, generator: Generator | None = None, **settings: object) -> None:
    """Drive `drill` with a client and a proxy, and see that no connection, process or task is left behind."""
    given = {"index": {INDEX: {}}} | settings
    before = _open_files()

    async def main() -> None:
        made = generator or ScriptedGenerator(GREEDY.answers)
        async with run_proxy(engine_url, made, **given) as front, aiohttp.ClientSession() as client:
            async with asyncio.timeout(60):
                await drill(client, front)
        await asyncio.sleep(0.05)
        left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        assert left == []

    asyncio.run(main())
    assert _open_files() <= before + 2


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _search(client: aiohttp.ClientSession, url: str, body: Any = BODY, **options: Any) -> tuple[int, str, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | options.pop("headers", {})
    async with client.post(f"{url}/{INDEX}/_search", data=data, headers=headers, **options) as answer:
        found = await answer.json()
        found.pop("took", None)
        return answer.status, answer.headers.get("X-Querylift", ""), found


async def _as_without_us(
    client: aiohttp.ClientSession, engine_url: str, front: RunningProxy, body: Any = BODY, **o: Any
) -> str:
    """Assert that the proxy answers exactly as the engine does, and return the outcome."""
    status, outcome, found = await _search(client, front.url, body, **o)
    direct = await _search(client, engine_url, body, **o)
    assert (status, found) == (direct[0], direct[2])
    return outcome


def test_an_expanded_search_keeps_its_hits(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, front: RunningProxy) -> None:
        status, outcome, found = await _search(client, front.url)
        direct = await _search(client, engine_url)
        assert (status, outcome) == (200, "expanded")
        assert found["hits"]["total"] == direct[2]["hits"]["total"]
        assert found["hits"]["max_score"] > direct[2]["hits"]["max_score"]

    _run(engine_url, drill)


@pytest.mark.model
def test_a_worker_killed_in_the_middle_of_a_request_costs_no_search(engine_url: str) -> None:
    generator = LlamaGenerator(find_packaged_model())

    async def drill(client: aiohttp.ClientSession, front: RunningProxy) -> None:
        search = asyncio.ensure_future(_as_without_us(client, engine_url, front))
        await asyncio.sleep(0.1)
        assert generator.pid is not None
        os.kill(generator.pid, signal.SIGKILL)
        assert await search == "error;generator"
        await _until_expanded(client, front)

    _run(engine_url, drill, generator, budget_ms=20_000, cache={"pin_s": 0})


@pytest.mark.model
def test_a_worker_that_hangs_costs_the_budget_and_is_replaced(engine_url: str) -> None:
    generator = LlamaGenerator(find_packaged_model(), hang_s=1)

    async def drill(client: aiohttp.ClientSession, front: RunningProxy) -> None:
        stopped = generator.pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        assert await _as_without_us(client, engine_url, front) == "late;budget"
        await _until_expanded(client, front)
        assert generator.pid != stopped
        assert not Path(f"/proc/{stopped}").exists()

    _run(engine_url, drill, generator, budget_ms=300, cache={"pin_s": 0})


async def _until_expanded(client: aiohttp.ClientSession, front: RunningProxy) -> None:
    """Search until the generator answers again; every search on the way is answered."""
    for attempt in range(100):
        body = {"query": {"match": {"text": f"compress folder number {'again ' * (attempt % 5)}"}}}
        status, outcome, _ = await _search(client, front.url, body)
        assert status == 200
        if outcome in ("expanded", "cached"):
            return
        await asyncio.sleep(0.2)
    raise AssertionError("the worker did not come back")


def test_an_engine_that_is_down_is_said_in_a_moment(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, front: RunningProxy) -> None:
        async with asyncio.timeout(5):
            status, _, found = await _search(client, front.url)
        assert (status, found["error"]["type"]) == (502, "querylift_engine_unreachable")

    _run("http://127.0.0.1:9", drill)  # a port that nothing listens on


def _through_relay(
    engine_url: str, drill: Callable[[aiohttp.ClientSession, RunningProxy, Relay], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with run_relay(engine_url) as relay:
            generator = ScriptedGenerator(GREEDY.answers)
            async with (
                run_proxy(relay.url, generator, index={INDEX: {}}) as front,
                aiohttp.ClientSession() as client,
            ):
                async with asyncio.timeout(60):
                    await drill(client, front, relay)

    asyncio.run(main())


def test_a_slow_engine_is_waited_for(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, front: RunningProxy, relay: Relay) -> None:
        relay.delay_s = 1.5
        assert (await _search(client, front.url))[:2] == (200, "expanded")

    _through_relay(engine_url, drill)


def test_a_client_that_leaves_lets_go_of_the_engine(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, front: RunningProxy, relay: Relay) -> None:
        relay.delay_s = 30
        with pytest.raises(TimeoutError):
            await _search(client, front.url, timeout=aiohttp.ClientTimeout(total=0.3))
        async with asyncio.timeout(5):
            while relay.open_connections:
                await asyncio.sleep(0.02)
        relay.delay_s = 0
        assert (await _search(client, front.url))[0] == 200

    _through_relay(engine_url, drill)


def test_an_answer_cut_in_the_middle_is_cut_for_the_client_too(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, front: RunningProxy, relay: Relay) -> None:
        relay.cut_after_bytes = 5000
        with pytest.raises(aiohttp.ClientError):
            plain = {"Accept-Encoding": "identity"}  # compressed, the answer would fit
            await _search(client, front.url, {"query": {"match": {"text": "word"}}}, headers=plain)
        relay.cut_after_bytes = None
        assert (await _search(client, front.url))[0] == 200

    _through_relay(engine_url, drill)


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b"{", "skipped;not-json"),
        (b'{"query": {"match": {"text": "compress a folder"}}', "skipped;not-json"),
        (b"[]", "skipped;not-json"),
        (b'{"query": {"match": {"text": "a b", "text": "c d"}}}', "skipped;duplicate-key"),
        (b'{"query": {"match": {"text": "compress \xff"}}}', "skipped;not-json"),
        (b'{"query": ' * 3000, "skipped;too-deep"),
        (b'{"query": {"nonsense": {}}}', "skipped;no-text"),
        (b'{"query": {"match": {"text": {"query": "compress", "operator": "nonsense"}}}}', "error;rejected"),
    ],
)
def test_a_malformed_search_gets_the_engines_own_error(engine_url: str, body: bytes, outcome: str) -> None:
    async def drill(client: aiohttp.ClientSession, front: RunningProxy) -> None:
        assert await _as_without_us(client, engine_url, front, body) == outcome

    _run(engine_url, drill, ScriptedGenerator({"compress": Expansion(text="zip")}))


def test_a_gzip_bomb_does_no_harm(engine_url: str) -> None:
    bomb = gzip.compress(b'{"query": {"match": {"text": "' + b"a" * 20_000_000 + b'"}}}')

    async def drill(client: aiohttp.ClientSession, front: RunningProxy) -> None:
        async with client.post(
            f"{front.url}/{INDEX}/_search",
            data=bomb,
            headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
        ) as answer:
            assert answer.headers["X-Querylift"] == "skipped;too-large"
        assert (await _search(client, front.url))[1] == "expanded"

    _run(engine_url, drill)


def test_a_query_of_10_000_words_goes_to_the_engine_as_it_is(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, front: RunningProxy) -> None:
        body = {"query": {"match": {"text": "compress " * 10_000}}}
        assert await _as_without_us(client, engine_url, front, body) == "skipped;long"

    _run(engine_url, drill)


@pytest.mark.model
def test_a_budget_of_1_ms_answers_as_the_engine_would(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, front: RunningProxy) -> None:
        for words in ("compress a folder", "open a page", "shuffle a list"):
            body = {"query": {"match": {"text": words}}}
            assert (await _as_without_us(client, engine_url, front, body)).startswith("late;budget")

    _run(engine_url, drill, LlamaGenerator(find_packaged_model()), budget_ms=1)
