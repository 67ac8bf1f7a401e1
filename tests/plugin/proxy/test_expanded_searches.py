"""Searches that are expanded on the way to the engine, and what happens when there is no expansion."""

import asyncio
import gzip
import json

import aiohttp
import pytest

from querylift.plugin.errors import GeneratorError
from querylift.plugin.expansion import Expansion
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.proxy_scenarios import BODY, JSON_HEADERS, RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import RunningProxy, StubEngine


def test_a_search_is_expanded_and_then_cached() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy))[:2] == (200, "expanded")
        assert (await send_search(client, proxy))[:2] == (200, "cached")
        rewrites = [json.loads(request.body)["query"]["bool"] for request in engine.requests]
        assert rewrites[0] == rewrites[1]
        assert rewrites[0]["must"] == [{"match": {"text": "download a page"}}]
        assert [request.get_header_values(b"content-length") for request in engine.requests] == [
            [str(len(request.body)).encode()] for request in engine.requests
        ]

    run_with_proxy(check)


@pytest.mark.parametrize("switch", ["off", "false", "0", "OFF"])
def test_a_request_header_switches_expansion_off(switch: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await send_search(client, proxy, headers=JSON_HEADERS | {"X-Querylift": switch})
        assert answer[1] == "skipped;off"
        assert engine.requests[0].body == RAW_BODY

    run_with_proxy(check)


@pytest.mark.parametrize(
    "media_type",
    ["application/json; charset=UTF-8", "application/vnd.elasticsearch+json; compatible-with=9", "APPLICATION/JSON"],
)
def test_vendor_media_types_are_read(media_type: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy, headers={"Content-Type": media_type}))[1] == "expanded"
        assert engine.requests[0].get_header_values(b"content-type") == [media_type.encode()]

    run_with_proxy(check)


def test_a_rewritten_gzip_body_is_sent_uncompressed() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        headers = JSON_HEADERS | {"Content-Encoding": "gzip"}
        assert (await send_search(client, proxy, data=gzip.compress(RAW_BODY), headers=headers))[1] == "expanded"
        assert engine.requests[0].get_header_values(b"content-encoding") == []
        assert b"urlopen" in engine.requests[0].body

    run_with_proxy(check)


def test_a_search_in_the_url_is_moved_into_the_body_when_it_is_expanded() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        parameters = {"source": RAW_BODY.decode(), "source_content_type": "application/json", "size": "3"}
        answer = await send_search(client, proxy, method="GET", params=parameters, data=None, headers={})
        assert answer[1] == "expanded"
        request = engine.requests[0]
        assert request.start_line == b"GET /docs/_search?size=3 HTTP/1.1"
        assert b"urlopen" in request.body
        assert request.get_header_values(b"content-type") == [b"application/json"]

    run_with_proxy(check)


def test_an_msearch_expands_each_search_by_its_own_index() -> None:
    lines = b'{"index":"docs"}\n' + RAW_BODY + b'\n{"index":"other"}\n' + RAW_BODY + b"\n"

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        headers = {"Content-Type": "application/x-ndjson"}
        assert (await send_search(client, proxy, path="/_msearch", data=lines, headers=headers))[1] == "expanded"
        sent_lines = engine.requests[0].body.split(b"\n")
        assert b"urlopen" in sent_lines[1]
        assert sent_lines[2:] == [b'{"index":"other"}', RAW_BODY, b""]

    run_with_proxy(check)


def test_a_large_expanded_search_reaches_the_engine_whole() -> None:
    body = BODY | {"ext": {"note": "y" * 200_000}}

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy, data=json.dumps(body).encode()))[1] == "expanded"
        assert json.loads(engine.requests[0].body)["ext"] == body["ext"]

    run_with_proxy(check)


def test_only_the_header_shows_that_a_generator_failed() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await send_search(client, proxy) == (200, "error;generator", b'{"hits":{}}')
        assert engine.requests[0].body == RAW_BODY

    run_with_proxy(check, generator=ScriptedGenerator({"download a page": GeneratorError("dead")}))


def test_a_slow_generator_costs_only_the_budget() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with asyncio.timeout(2):
            assert (await send_search(client, proxy))[1] == "late;budget"
        assert engine.requests[0].body == RAW_BODY

    run_with_proxy(
        check, generator=ScriptedGenerator({"download a page": Expansion(text="words")}, delay_s=60), budget_ms=30
    )
