"""A client that the engine refuses learns nothing from the proxy, fills no cache, and slows nobody."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import aiohttp

from querylift.plugin.expansion import Expansion
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.proxy_scenarios import BODY, JSON_HEADERS, RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import ReceivedRequest, RunningProxy, StubEngine, answer_with

KNOWN = {**JSON_HEADERS, "Authorization": "Basic a25vd24="}
STRANGER = {**JSON_HEADERS, "Authorization": "Basic c3RyYW5nZXI="}


async def _answer_known_clients(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    is_known = request.get_header_values(b"authorization") == [b"Basic a25vd24="]
    handler = answer_with() if is_known else answer_with(b"{}", status="401 Unauthorized")
    await handler(request, writer)


def _count_cached_expansions(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        row = connection.execute("SELECT count(*) FROM kept WHERE value LIKE '%urlopen%'").fetchone()
    return int(row[0])


def test_an_answer_that_refuses_the_client_does_not_say_whether_the_query_is_cached() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await send_search(client, proxy, headers=STRANGER) == (401, "", b"{}")
        assert (await send_search(client, proxy, headers=KNOWN))[:2] == (200, "cached")
        assert await send_search(client, proxy, headers=STRANGER) == (401, "", b"{}")

    run_with_proxy(check, _answer_known_clients)


def test_a_client_that_the_engine_refuses_writes_nothing_into_the_cache(tmp_path: Path) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy, headers=STRANGER)

    run_with_proxy(check, _answer_known_clients, cache={"file": str(tmp_path / "cache")})
    assert _count_cached_expansions(tmp_path / "cache") == 0


def test_a_client_that_the_engine_answers_writes_into_the_cache(tmp_path: Path) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy, headers=KNOWN)
        await asyncio.sleep(0.1)

    run_with_proxy(check, _answer_known_clients, cache={"file": str(tmp_path / "cache")})
    assert _count_cached_expansions(tmp_path / "cache") == 1


def test_a_flood_of_new_queries_leaves_expansions_for_other_clients_and_pins_none() -> None:
    queries = [f"flood number {i}" for i in range(128)]
    expansions = {query: Expansion(text="urlopen") for query in [*queries, "download a page"]}
    lines = b"".join(
        b'{"index":"docs"}\n' + json.dumps({"query": {"match": {"text": query}}}).encode() + b"\n" for query in queries
    )

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        flood = asyncio.create_task(send_search(client, proxy, path="/_msearch", data=lines, headers=STRANGER))
        await asyncio.sleep(0.2)
        assert (await send_search(client, proxy, headers=KNOWN))[1] == "expanded"
        await flood
        last = json.dumps({"query": {"match": {"text": queries[-1]}}})
        assert (await send_search(client, proxy, data=last, headers=KNOWN))[1] == "expanded"

    run_with_proxy(check, _answer_known_clients, generator=ScriptedGenerator(expansions, delay_s=0.5))


def test_a_large_body_is_expanded_like_a_small_one() -> None:
    large = json.dumps({"query": {"bool": {"must": [BODY["query"]], "filter": [{"terms": {"id": list(range(5000))}}]}}})

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy, data=large))[1] == "expanded"
        sent = json.loads(engine.requests[0].body)
        assert sent["query"]["bool"]["filter"] == [{"terms": {"id": list(range(5000))}}]
        assert "urlopen fetches" in json.dumps(sent["query"]["bool"]["must"])
        msearch = b'{"index":"docs"}\n' + large.encode() + b'\n{"index":"docs"}\n' + RAW_BODY + b"\n"
        answer = b'{"responses":[{"status":200},{"status":200}]}'
        engine.handler = answer_with(answer)
        assert (await send_search(client, proxy, path="/_msearch", data=msearch))[1] == "cached"
        assert engine.requests[1].body.count(b"urlopen fetches") == 2

    run_with_proxy(check)


def test_a_large_body_that_is_not_read_in_time_is_sent_as_it_is() -> None:
    large = json.dumps(BODY | {"post_filter": {"terms": {"id": list(range(5000))}}})

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy, data=large))[1] == "late;budget"
        assert engine.requests[0].body == large.encode()

    run_with_proxy(check, budget_ms=0)
