"""The engine sees exactly the requests that a client sent, however their bytes arrive."""

import asyncio

import aiohttp
import pytest

from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.proxy_scenarios import run_with_proxy, send_search
from tests.helpers.raw_client import connect_raw, exchange_raw
from tests.helpers.upstream_stub import RunningProxy, StubEngine, answer_with, run_proxy, run_stub_engine
from tests.helpers.wire_requests import SMUGGLED, UPGRADES, check_requests_on_the_wire


@pytest.mark.parametrize("path", ["/docs/_search", "/x/_bulk"])
@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES.keys())
def test_the_body_of_a_request_with_upgrade_is_never_taken_for_a_request(upgrade: bytes, path: str) -> None:
    body = b"x" * 600_000 + SMUGGLED
    head = b"POST %s HTTP/1.1\r\nHost: h\r\n%sContent-Length: %d\r\n\r\n" % (path.encode(), upgrade, len(body))

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([head, body[:300_000], body[300_000:600_000], SMUGGLED])
            answer = await raw.read_answer()
            assert answer is not None and answer.status == 200
        assert [(request.start_line, request.body) for request in engine.requests] == [
            (f"POST {path} HTTP/1.1".encode(), body)
        ]
        for name in (b"upgrade", b"connection", b"http2-settings"):
            assert engine.requests[0].get_header_values(name) == []

    run_with_proxy(check)


def test_a_search_of_a_client_that_offers_http_2_keeps_its_body() -> None:
    body = b'{"query":{"term":{"tenant":"a"}}}'
    request = (
        b"POST /docs/_search HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
    )

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await exchange_raw(proxy.port, request % (UPGRADES["h2c"], len(body)) + body)).status == 200
        assert engine.requests[0].body == body

    run_with_proxy(check)


def test_a_tunnel_is_refused() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await exchange_raw(proxy.port, b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n" + SMUGGLED)
        assert (answer.status, engine.requests) == (501, [])

    run_with_proxy(check)


@pytest.mark.parametrize("path", ["/docs/_search", "/x/_bulk"])
def test_a_trailer_is_not_a_header(path: str) -> None:
    head = (
        b"POST %s HTTP/1.1\r\nHost: h\r\nTrailer: Authorization\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
    )
    trailers = b"Authorization: Basic c3RvbGVu\r\nX-Querylift: off\r\nContent-Type: application/json\r\n"

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([head + b"2\r\n{}\r\n", b"0\r\n" + trailers + b"\r\n", SMUGGLED])
            for _ in range(2):
                assert await raw.read_answer() is not None
        assert [request.start_line.split()[0] for request in engine.requests] == [b"POST", b"DELETE"]
        for request in engine.requests:
            assert request.get_header_values(b"authorization") == request.get_header_values(b"trailer") == []

    run_with_proxy(check)


def test_a_client_cannot_take_away_a_header_that_a_router_has_set() -> None:
    request = b"GET /docs/_search HTTP/1.1\r\nHost: h\r\nConnection: authorization, x-proxy-user\r\n"

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await exchange_raw(proxy.port, request + b"Authorization: Basic abc\r\nX-Proxy-User: ann\r\n\r\n")
        assert engine.requests[0].get_header_values(b"authorization") == [b"Basic abc"]
        assert engine.requests[0].get_header_values(b"x-proxy-user") == [b"ann"]

    run_with_proxy(check)


LEAVING_PATHS = ["/../tenant-b/_search", "/x/../../tenant-b/_search", "/%2e%2e/tenant-b/_search", "/..%2ftenant-b/_search",
                 "/%252e%252e/b/_search", "/..;a=1/tenant-b/_search", "/..%5ctenant-b/_search"]  # fmt: skip


@pytest.mark.parametrize("path", LEAVING_PATHS)
def test_a_path_cannot_leave_the_path_of_the_engines_url(path: str) -> None:
    async def main() -> None:
        async with run_stub_engine(answer_with()) as engine:
            url = f"http://127.0.0.1:{engine.port}/tenant-a"
            async with run_proxy(url, ScriptedGenerator({})) as proxy:
                answer = await exchange_raw(proxy.port, f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
                assert (answer.status, engine.requests) == (400, [])
                assert b"send it without .." in answer.body
                await exchange_raw(proxy.port, b"GET /docs/_doc/a..b HTTP/1.1\r\nHost: h\r\n\r\n")
                assert engine.requests[0].start_line == b"GET /tenant-a/docs/_doc/a..b HTTP/1.1"

    asyncio.run(main())


MALFORMED_REQUESTS = {
    "two lengths": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a signed length": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello",
    "a list of lengths": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\nhello",
    "a length and chunks": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "an odd encoding": b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked is not last": b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a folded header": b"POST /x HTTP/1.1\r\nHost: h\r\nX: 1\r\n Content-Length: 5\r\n\r\nhello",
    "a bare line feed": b"POST /x HTTP/1.1\nHost: h\nContent-Length: 5\n\nhello",
    "a null byte": b"GET /x HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n",
    "a space before a colon": b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length : 5\r\n\r\nhello",
    "a bad chunk": b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a chunk without its end": b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab0\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("malformed", MALFORMED_REQUESTS.values(), ids=MALFORMED_REQUESTS.keys())
@pytest.mark.parametrize("upgrade", [b"", UPGRADES["h2c"]], ids=["plain", "upgrade"])
def test_a_malformed_request_and_what_follows_it_never_reach_the_engine_as_requests(
    malformed: bytes, upgrade: bytes
) -> None:
    line, separator, following = malformed.partition(b"\n")

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await exchange_raw(proxy.port, line + separator + upgrade + following + SMUGGLED)
        assert answer.status in (400, 502)  # 502: its beginning was fine, and the engine's connection was closed
        assert (await send_search(client, proxy))[0] == 200
        assert [request.start_line for request in engine.requests] == [b"POST /docs/_search HTTP/1.1"]

    run_with_proxy(check)


def test_the_engine_sees_exactly_the_requests_that_the_client_sent_wherever_they_are_cut() -> None:
    check_requests_on_the_wire(200)
