"""Requests that reach the engine exactly as the client sent them."""

import asyncio
import gzip
import io
import json
from typing import Any

import aiohttp
import pytest

from tests.helpers.proxy_scenarios import BODY, JSON_HEADERS, RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import RunningProxy, StubEngine, answer_with


@pytest.mark.parametrize(
    ("path", "header"),
    [("/other/_search", "skipped;index"), ("/_search", "skipped;index"), ("/docs/_count", ""), ("/docs/_doc/1", ""),
     ("/docs/_delete_by_query", ""), ("/docs/_update_by_query", ""), ("/docs/_search/template", "skipped;template"),
     ("/_search/scroll", "skipped;continuation"),
     ("/docs/_explain/1", ""), ("/docs/_validate/query", ""), ("/_reindex", ""), ("/docs/_search_shards", ""),
     ("/_msearch/template", "skipped;template")],
)  # fmt: skip
def test_a_request_that_is_not_an_allowed_search_is_forwarded_byte_for_byte(path: str, header: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await send_search(client, proxy, path=path) == (200, header, b'{"hits":{}}')
        assert (engine.requests[0].start_line, engine.requests[0].body) == (f"POST {path} HTTP/1.1".encode(), RAW_BODY)

    run_with_proxy(check)


def test_odd_paths_and_parameters_reach_the_engine_unchanged() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        line = b"GET /a%2Fb/%E4%B8%AD/_doc/x%20y?q=a+b&q=%zz&empty= HTTP/1.1"
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(line + b"\r\nHost: h\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert engine.requests[0].start_line == line

    run_with_proxy(check)


def test_headers_are_forwarded_both_ways_except_hop_by_hop_headers() -> None:
    extra = b"X-Elastic-Product: Elasticsearch\r\nWarning: 299 a\r\nWarning: 299 b\r\nSet-Cookie: a=1\r\n"
    extra += b"Connection: x-hop\r\nX-Hop: 1\r\n"

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        request_headers = [("Content-Type", "application/json"), ("X-Tag", "1"), ("X-Tag", "2"), ("Authorization", "Basic abc"),
                ("Connection", "keep-alive, x-mine"), ("X-Mine", "1"), ("TE", "trailers")]  # fmt: skip
        async with client.post(proxy.url + "/docs/_search", data=RAW_BODY, headers=request_headers) as answer:
            assert answer.headers.getall("Warning") == ["299 a", "299 b"]
            assert answer.headers["X-Elastic-Product"] == "Elasticsearch"
            assert answer.headers["Set-Cookie"] == "a=1"
            assert "X-Hop" not in answer.headers
        request = engine.requests[0]
        assert request.get_header_values(b"x-tag") == [b"1", b"2"]
        assert request.get_header_values(b"authorization") == [b"Basic abc"]
        assert request.get_header_values(b"te") == request.get_header_values(b"connection") == []
        assert request.get_header_values(b"x-mine") == [b"1"]  # otherwise a client could drop what a router has set
        assert request.get_header_values(b"host") == [f"127.0.0.1:{engine.port}".encode()]

    run_with_proxy(check, answer_with(extra=extra))


@pytest.mark.parametrize("media_type", ["application/yaml", "application/smile", "application/cbor", "text/plain"])
def test_a_body_of_another_media_type_is_forwarded_unchanged(media_type: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy, headers={"Content-Type": media_type}))[1] == "skipped;encoding"
        assert engine.requests[0].body == RAW_BODY

    run_with_proxy(check)


def test_a_gzip_bomb_is_forwarded_without_decompressing_it() -> None:
    bomb = gzip.compress(b'{"query": "' + b"a" * 50_000_000)
    assert len(bomb) < 100_000

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        headers = JSON_HEADERS | {"Content-Encoding": "gzip"}
        assert (await send_search(client, proxy, data=bomb, headers=headers))[1] == "skipped;too-large"
        assert engine.requests[0].body == bomb
        assert engine.requests[0].get_header_values(b"content-encoding") == [b"gzip"]

    run_with_proxy(check)


@pytest.mark.parametrize("damaged", [b"\x1f\x8b junk", gzip.compress(RAW_BODY, mtime=0)[:-9], RAW_BODY])
def test_a_damaged_gzip_body_is_forwarded_unchanged(damaged: bytes) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        headers = JSON_HEADERS | {"Content-Encoding": "gzip"}
        assert (await send_search(client, proxy, data=damaged, headers=headers))[1] == "skipped;encoding"
        assert engine.requests[0].body == damaged

    run_with_proxy(check)


def test_a_search_larger_than_the_limit_is_streamed_through() -> None:
    large = json.dumps(BODY | {"x": "y" * 3_000_000}).encode()

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy, data=io.BytesIO(large)))[1] == "skipped;too-large"
        assert engine.requests[0].body == large

    run_with_proxy(check)


def test_a_bulk_body_of_unknown_length_is_streamed_through() -> None:
    async def chunks() -> Any:
        for _ in range(200):
            yield b"x" * 50_000

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy, path="/_bulk", data=chunks()))[0] == 200
        assert len(engine.requests[0].body) == 10_000_000

    run_with_proxy(check)


def test_a_search_in_the_url_that_is_not_expanded_stays_in_the_url() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        path = "/other/_search?source=%7B%7D&source_content_type=application/json"
        assert (await send_search(client, proxy, method="GET", path=path, data=None, headers={}))[1] == "skipped;index"
        assert engine.requests[0].start_line == f"GET {path} HTTP/1.1".encode()

    run_with_proxy(check)


@pytest.mark.parametrize("target", ["*@127.0.0.1:1/x", "*"])
def test_a_target_that_is_not_a_path_cannot_choose_the_host(target: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(f"OPTIONS {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
        assert engine.requests == []

    run_with_proxy(check)


def test_a_head_request_gets_headers_and_no_body() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.head(proxy.url + "/docs") as answer:
            assert (answer.status, answer.headers["Content-Length"], await answer.read()) == (200, "11", b"")

    run_with_proxy(check)
