"""The engine sees exactly the requests that a client sent, however their bytes arrive."""

import asyncio
import itertools
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.proxy_scenarios import run_with_proxy, send_search
from tests.helpers.raw_client import connect_raw, exchange_raw
from tests.helpers.upstream_stub import RunningProxy, StubEngine, answer_with, run_proxy, run_stub_engine

UPGRADES = {
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "anything": b"Connection: keep-alive, upgrade\r\nUpgrade: x\r\n",
    "two": b"Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
}
SMUGGLED = b"DELETE /products HTTP/1.1\r\nHost: h\r\n\r\n"


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


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    body: bytes
    is_chunked: bool
    upgrade: bytes

    def format_bytes(self) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: h\r\nX-Tag: t\r\n".encode() + self.upgrade
        if not self.is_chunked:
            return head + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body
        half = len(self.body) // 2
        chunks = [chunk for chunk in (self.body[:half], self.body[half:]) if chunk]
        framed_chunks = b"".join(b"%x;x=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed_chunks + b"0\r\nX-Tag: trailer\r\n\r\n"


_REQUESTS = st.builds(
    _Request,
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    path=st.sampled_from(["/docs/_search", "/_msearch", "/docs/_doc/1", "/_bulk", "/a%2Fb?q=%zz"]),
    body=st.one_of(st.binary(max_size=30), st.just(SMUGGLED), st.just(b"0\r\n\r\n" + SMUGGLED), st.just(b"\r\n" * 9)),
    is_chunked=st.booleans(),
    upgrade=st.sampled_from([b"", b"", *UPGRADES.values()]),
)


async def _send_all(port: int, segments: list[bytes], answer_count: int) -> None:
    async with connect_raw(port) as client, asyncio.timeout(20):
        await client.send_segments(segments)
        for _ in range(answer_count):
            answer = await client.read_answer()
            assert answer is not None and answer.status == 200


def test_the_engine_sees_exactly_the_requests_that_the_client_sent_wherever_they_are_cut() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        engine = runner.run(stack.enter_async_context(run_stub_engine(answer_with())))
        url = f"http://127.0.0.1:{engine.port}"
        proxy = runner.run(stack.enter_async_context(run_proxy(url, ScriptedGenerator({}))))

        @settings(max_examples=200, deadline=None)
        @given(requests=st.lists(_REQUESTS, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 1500), max_size=6))
        def check_requests(requests: list[_Request], cuts: list[int]) -> None:
            wire = b"".join(request.format_bytes() for request in requests)
            edges = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
            engine.requests.clear()
            segments = [wire[start:end] for start, end in itertools.pairwise(edges)]
            runner.run(_send_all(proxy.port, segments, len(requests)))
            assert [(request.start_line, request.body) for request in engine.requests] == [
                (f"{request.method} {request.path} HTTP/1.1".encode(), request.body) for request in requests
            ]
            assert all(request.get_header_values(b"x-tag") == [b"t"] for request in engine.requests)

        check_requests()
        runner.run(stack.aclose())
