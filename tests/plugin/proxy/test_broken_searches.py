"""A search that the engine cannot fully answer by itself harms nobody else's searches. On a real engine."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.engine import Engine
from querylift.plugin.expansion import Expansion
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.proxy_scenarios import JSON_HEADERS
from tests.helpers.upstream_stub import RunningProxy, run_proxy

pytestmark = pytest.mark.engine
INDEX = "broken-searches"
PLAIN = {"query": {"match": {"text": "download a page"}}}
BY_SCRIPT = {
    "query": {"function_score": PLAIN | {"script_score": {"script": {"source": "_score * doc['popularity'].value"}}}}
}
BY_FIELD = {"query": {"function_score": PLAIN | {"field_value_factor": {"field": "popularity"}}}}
BAD_CLAUSE = {"query": {"bool": {"must": [PLAIN["query"]], "filter": [{"no_such_query": {}}]}}}


@pytest.fixture(scope="module")
def engine_url(opensearch: str) -> Iterator[str]:
    """Yield the URL of an engine with an index of two shards. On one of them a document has no popularity."""
    with Engine(parse_settings({"engine": opensearch})) as engine:
        properties = {"text": {"type": "text"}, "popularity": {"type": "integer"}}
        settings = {"number_of_shards": 2, "number_of_replicas": 0}
        engine.call("PUT", f"/{INDEX}", {"settings": settings, "mappings": {"properties": properties}})
        for i in range(8):
            popularity = {"popularity": i} if i else {}
            engine.call("PUT", f"/{INDEX}/_doc/{i}", {"text": "download a page by urlopen"} | popularity)
        engine.call("POST", f"/{INDEX}/_refresh")
        yield opensearch
        engine.call("DELETE", f"/{INDEX}")


Check = Callable[[aiohttp.ClientSession, RunningProxy], Awaitable[None]]


def _run_with_proxy(engine_url: str, check: Check) -> None:
    async def main() -> None:
        generator = ScriptedGenerator({"download a page": Expansion(text="urlopen fetches")})
        async with (
            run_proxy(engine_url, generator, index={INDEX: {}}) as proxy,
            aiohttp.ClientSession(headers=JSON_HEADERS) as client,
            asyncio.timeout(30),
        ):
            await check(client, proxy)

    asyncio.run(main())


async def _post(client: aiohttp.ClientSession, url: str, *bodies: Any) -> tuple[int, str, Any]:
    """Send one search, or several as an `_msearch`. Return status, outcome, and the answer without its times."""
    path, data = f"/{INDEX}/_search", json.dumps(bodies[0])
    if len(bodies) > 1:
        path, data = f"/{INDEX}/_msearch", "".join("{}\n" + json.dumps(body) + "\n" for body in bodies)
    async with client.post(url + path, data=data) as reply:
        answer = await reply.json()
        for part in [answer, *answer.get("responses", [])]:
            part.pop("took", None)
        return reply.status, reply.headers.get("X-Querylift", ""), answer


@pytest.mark.parametrize("body", [BY_SCRIPT, BY_FIELD], ids=["a script", "a field value"])
def test_a_search_whose_script_fails_on_one_shard_pauses_nothing(engine_url: str, body: dict[str, Any]) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        status, _, direct_answer = await _post(client, engine_url, body)
        assert (status, direct_answer["_shards"]["failed"]) == (200, 1)
        assert await _post(client, proxy.url, body) == (200, "skipped;original-fails", direct_answer)
        assert (await _post(client, proxy.url, PLAIN))[:2] == (200, "cached")

    _run_with_proxy(engine_url, check)


def test_a_search_that_the_engine_refuses_pauses_nothing(engine_url: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        assert (await _post(client, proxy.url, BAD_CLAUSE))[:2] == (400, "skipped;original-fails")
        assert (await _post(client, proxy.url, PLAIN))[:2] == (200, "cached")

    _run_with_proxy(engine_url, check)


@pytest.mark.parametrize("body", [BY_SCRIPT, BAD_CLAUSE], ids=["a script", "an unknown clause"])
def test_such_a_search_in_an_msearch_pauses_nothing(engine_url: str, body: dict[str, Any]) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        status, _, direct_answer = await _post(client, engine_url, body, PLAIN)
        assert await _post(client, proxy.url, body, PLAIN) == (status, "skipped;original-fails", direct_answer)
        assert (await _post(client, proxy.url, PLAIN))[:2] == (200, "cached")

    _run_with_proxy(engine_url, check)


def test_an_msearch_without_a_final_newline_gets_the_engines_own_answer(engine_url: str) -> None:
    data = "{}\n" + json.dumps(PLAIN)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy) -> None:
        for ending, outcome in (("", "skipped;no-newline"), ("\n", "expanded"), ("", "skipped;no-newline")):
            answers = []
            for url in (engine_url, proxy.url):
                async with client.post(f"{url}/{INDEX}/_msearch", data=data + ending) as reply:
                    answers.append((reply.status, (await reply.json()).get("error")))
            assert (answers[1], reply.headers["X-Querylift"]) == (answers[0], outcome)

    _run_with_proxy(engine_url, check)
