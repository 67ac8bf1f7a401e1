"""Failure drill with a real engine: every search is answered as without Querylift, nothing hangs and nothing leaks."""

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
EXPANSIONS = {QUERY: Expansion(text="archives zip format")}
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


def _run_drill(engine_url: str, drill: Drill, generator: Generator | None = None, **settings: object) -> None:
    """Run `drill` with a client and a proxy. Assert that no connection, process or task is left behind."""
    proxy_settings: dict[str, Any] = {"index": {INDEX: {}}} | settings
    open_files = _count_open_files()

    async def main() -> None:
        expansions = generator or ScriptedGenerator(EXPANSIONS)
        async with run_proxy(engine_url, expansions, **proxy_settings) as proxy, aiohttp.ClientSession() as client:
            async with asyncio.timeout(60):
                await drill(client, proxy)
        await asyncio.sleep(0.05)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert _count_open_files() <= open_files + 2


def _count_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _search(client: aiohttp.ClientSession, url: str, body: Any = BODY, **options: Any) -> tuple[int, str, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | options.pop("headers", {})
    async with client.post(f"{url}/{INDEX}/_search", data=data, headers=headers, **options) as answer:
        body_without_time = await answer.json()
        body_without_time.pop("took", None)
        return answer.status, answer.headers.get("X-Querylift", ""), body_without_time


async def _assert_same_answer(
    client: aiohttp.ClientSession, engine_url: str, proxy: RunningProxy, body: Any = BODY, **options: Any
) -> str:
    """Assert that the proxy answers exactly as the engine does, and return the outcome."""
    status, outcome, answer = await _search(client, proxy.url, body, **options)
    engine_status, _, engine_answer = await _search(client, engine_url, body, **options)
    assert (status, answer) == (engine_status, engine_answer)
    return outcome


def test_an_expanded_search_keeps_its_hits(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        status, outcome, answer = await _search(client, proxy.url)
        _, _, engine_answer = await _search(client, engine_url)
        assert (status, outcome) == (200, "expanded")
        assert answer["hits"]["total"] == engine_answer["hits"]["total"]
        assert answer["hits"]["max_score"] > engine_answer["hits"]["max_score"]

    _run_drill(engine_url, drill)


@pytest.mark.model
def test_no_search_fails_when_the_worker_is_killed(engine_url: str) -> None:
    generator = LlamaGenerator(find_packaged_model())

    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        search = asyncio.ensure_future(_assert_same_answer(client, engine_url, proxy))
        await asyncio.sleep(0.1)
        assert generator.pid is not None
        os.kill(generator.pid, signal.SIGKILL)
        assert await search == "error;generator"
        await _search_until_expanded(client, proxy)

    _run_drill(engine_url, drill, generator, budget_ms=20_000, cache={"pin_s": 0})


@pytest.mark.model
def test_a_worker_that_hangs_costs_only_the_budget_and_is_replaced(engine_url: str) -> None:
    generator = LlamaGenerator(find_packaged_model(), hang_s=3)

    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        stopped_pid = generator.pid
        assert stopped_pid is not None
        os.kill(stopped_pid, signal.SIGSTOP)
        assert await _assert_same_answer(client, engine_url, proxy) == "late;budget"
        await _search_until_expanded(client, proxy)
        assert generator.pid != stopped_pid
        assert not Path(f"/proc/{stopped_pid}").exists()

    _run_drill(engine_url, drill, generator, budget_ms=1500, cache={"pin_s": 0})


async def _search_until_expanded(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
    """Search until the generator answers again. Assert that every search is answered meanwhile."""
    for attempt in range(100):
        body = {"query": {"match": {"text": f"compress folder number {'again ' * (attempt % 5)}"}}}
        status, outcome, _ = await _search(client, proxy.url, body)
        assert status == 200
        if outcome in ("expanded", "cached"):
            return
        await asyncio.sleep(0.2)
    raise AssertionError("the worker did not come back")


def test_an_engine_that_is_down_is_reported_within_seconds(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        async with asyncio.timeout(5):
            status, _, answer = await _search(client, proxy.url)
        assert (status, answer["error"]["type"]) == (502, "querylift_engine_unreachable")

    _run_drill("http://127.0.0.1:9", drill)  # nothing listens on this port


def _run_drill_with_relay(
    engine_url: str, drill: Callable[[aiohttp.ClientSession, RunningProxy, Relay], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with run_relay(engine_url) as relay:
            generator = ScriptedGenerator(EXPANSIONS)
            async with (
                run_proxy(relay.url, generator, index={INDEX: {}}) as proxy,
                aiohttp.ClientSession() as client,
            ):
                async with asyncio.timeout(60):
                    await drill(client, proxy, relay)

    asyncio.run(main())


def test_the_proxy_waits_for_a_slow_engine(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy, relay: Relay) -> None:
        relay.delay_s = 1.5
        assert (await _search(client, proxy.url))[:2] == (200, "expanded")

    _run_drill_with_relay(engine_url, drill)


def test_the_engine_connection_is_closed_when_the_client_leaves(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy, relay: Relay) -> None:
        relay.delay_s = 30
        with pytest.raises(TimeoutError):
            await _search(client, proxy.url, timeout=aiohttp.ClientTimeout(total=0.3))
        async with asyncio.timeout(5):
            while relay.open_connections:
                await asyncio.sleep(0.02)
        relay.delay_s = 0
        assert (await _search(client, proxy.url))[0] == 200

    _run_drill_with_relay(engine_url, drill)


def test_an_answer_that_the_engine_cuts_is_cut_for_the_client_too(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy, relay: Relay) -> None:
        relay.cut_after_bytes = 5000
        with pytest.raises(aiohttp.ClientError):
            plain = {"Accept-Encoding": "identity"}  # a compressed answer would be shorter than the cut
            await _search(client, proxy.url, {"query": {"match": {"text": "word"}}}, headers=plain)
        relay.cut_after_bytes = None
        assert (await _search(client, proxy.url))[0] == 200

    _run_drill_with_relay(engine_url, drill)


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
        (b'{"query": {"match": {"text": {"query": "compress", "operator": "nonsense"}}}}', "skipped;original-fails"),
    ],
)
def test_a_malformed_search_gets_the_engines_own_error(engine_url: str, body: bytes, outcome: str) -> None:
    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        assert await _assert_same_answer(client, engine_url, proxy, body) == outcome

    _run_drill(engine_url, drill, ScriptedGenerator({"compress": Expansion(text="zip")}))


def test_a_gzip_bomb_does_no_harm(engine_url: str) -> None:
    bomb = gzip.compress(b'{"query": {"match": {"text": "' + b"a" * 20_000_000 + b'"}}}')

    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        async with client.post(
            f"{proxy.url}/{INDEX}/_search",
            data=bomb,
            headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
        ) as answer:
            assert answer.headers["X-Querylift"] == "skipped;too-large"
        assert (await _search(client, proxy.url))[1] == "expanded"

    _run_drill(engine_url, drill)


def test_a_query_of_10_000_words_is_sent_unchanged(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        body = {"query": {"match": {"text": "compress " * 10_000}}}
        assert await _assert_same_answer(client, engine_url, proxy, body) == "skipped;long"

    _run_drill(engine_url, drill)


@pytest.mark.model
def test_with_a_budget_of_1_ms_every_answer_is_the_engines(engine_url: str) -> None:
    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        for words in ("compress a folder", "open a page", "shuffle a list"):
            body = {"query": {"match": {"text": words}}}
            # On a busy machine, the millisecond is over before anybody is asked.
            assert await _assert_same_answer(client, engine_url, proxy, body) in ("late;warming", "late;budget")

    _run_drill(engine_url, drill, LlamaGenerator(find_packaged_model()), budget_ms=1)


EXPERIMENTS: list[dict[str, Any]] = [{"traffic": 1e-9}, {"interleave": True}, {"interleave": True, "mode": "widen"}]
EXPERIMENT_IDS = ["control", "interleave", "interleave-widen"]


@pytest.mark.parametrize("table", EXPERIMENTS, ids=EXPERIMENT_IDS)
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"query": {"match": {"text": "compress", "text": "folder"}}}',
        b'{"query": {"match": {"text": {"query": "compress", "operator": "nonsense"}}}}',
        b'{"query": {"match": {"text": "compress"}}, "size": -1}',
        b'{"query": {"match": {"text": "compress"}}, "from": "x"}',
        b'{"query": {"match": {"text": "compress"}}, "aggs": {"a": {"terms": {"field": "text"}}}}',
        b'{"query": {"match": {"text": "compress"}}, "ext": {"ubi": {"query_id": "\\r\\n"}}}',
        b'{"query": {"match": {"text": "compress"}}, "size": 100000}',
    ],
)
def test_an_experiment_answers_a_wrong_search_as_the_engine_does(
    engine_url: str, body: bytes, table: dict[str, Any]
) -> None:
    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        await _assert_same_answer(client, engine_url, proxy, body)

    _run_drill(engine_url, drill, ScriptedGenerator({"compress": Expansion(text="zip")}), index={INDEX: table})


@pytest.mark.parametrize("table", EXPERIMENTS, ids=EXPERIMENT_IDS)
def test_an_experiment_answers_as_the_engine_does_while_the_generator_fails(
    engine_url: str, table: dict[str, Any]
) -> None:
    async def drill(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        for user in ("anna", "", "x" * 8000, "\u00e9"):
            headers = {"X-Opaque-Id": user}
            outcome = await _assert_same_answer(client, engine_url, proxy, headers=headers)
            assert outcome in ("skipped;control", "error;generator", "late;pinned")

    _run_drill(engine_url, drill, ScriptedGenerator({QUERY: RuntimeError("broken")}), index={INDEX: table})


def test_interleaving_answers_while_the_engine_is_slow_and_leaves_nothing_behind(engine_url: str) -> None:
    async def main() -> None:
        async with run_relay(engine_url) as relay:
            expansions = ScriptedGenerator(EXPANSIONS)
            table = {INDEX: {"interleave": True}}
            async with run_proxy(relay.url, expansions, index=table) as proxy, aiohttp.ClientSession() as client:
                relay.delay_s = 1
                answers = await asyncio.gather(*(_search(client, proxy.url) for _ in range(20)))
                assert {answer[:2] for answer in answers} <= {
                    (200, "expanded;interleaved"),
                    (200, "cached;interleaved"),
                }
                relay.delay_s = 30
                connection_count = relay.open_connections
                with pytest.raises(TimeoutError):
                    await _search(client, proxy.url, timeout=aiohttp.ClientTimeout(total=0.3))
                async with asyncio.timeout(5):
                    while relay.open_connections > connection_count - 2:  # both searches are given up
                        await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_interleaving_with_an_engine_that_cuts_every_answer_is_an_error_and_no_hang(engine_url: str) -> None:
    async def main() -> None:
        async with run_relay(engine_url) as relay:
            expansions = ScriptedGenerator(EXPANSIONS)
            table = {INDEX: {"interleave": True}}
            async with run_proxy(relay.url, expansions, index=table) as proxy, aiohttp.ClientSession() as client:
                relay.cut_after_bytes = 100
                status, outcome, answer = await _search(client, proxy.url)
                assert (status, outcome) == (502, "error;engine")
                assert answer["error"]["type"] == "querylift_engine_unreachable"
                relay.cut_after_bytes = None
                assert (await _search(client, proxy.url))[0] == 200

    asyncio.run(main())
