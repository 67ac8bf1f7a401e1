"""Connections to the engine: which are used again, and which answers they may carry."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest

from querylift.plugin.proxy.admin import Admin
from querylift.plugin.proxy.server import create_server
from querylift.plugin.proxy.upstream import Upstream, UpstreamDown, make_engine_socket
from tests.helpers.proxy_scenarios import RAW_BODY, run_with_proxy, send_search
from tests.helpers.raw_client import connect_raw
from tests.helpers.upstream_stub import Handler, ReceivedRequest, RunningProxy, StubEngine, answer_with


def _answer_once_with(status: str) -> Handler:
    """Return a handler that answers `status` and then reads nothing more on that connection, as engines do."""

    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        if request.start_line.startswith(b"GET /poison"):
            await answer_with(b"{}", status=status)(request, writer)
            await writer.drain()
            await asyncio.sleep(60)
        await answer_with()(request, writer)

    return handle


@pytest.mark.parametrize("status", ["400 Bad Request", "413 Request Entity Too Large", "431 Too Large"])
def test_a_connection_on_which_the_engine_may_read_nothing_more_is_not_used_again(status: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for _ in range(3):
            assert (await send_search(client, proxy, method="GET", path="/poison", data=None))[0] == int(status[:3])
            async with asyncio.timeout(3):
                assert (await send_search(client, proxy))[0] == 200

    run_with_proxy(check, _answer_once_with(status))


def test_a_connection_is_used_again_after_every_other_answer() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for _ in range(5):
            assert (await send_search(client, proxy, path="/docs/_doc/1"))[0] == 404
        assert engine.connection_count == 1

    run_with_proxy(check, answer_with(b"{}", status="404 Not Found"))


def test_a_connection_is_closed_when_the_engine_answers_before_it_has_the_whole_body() -> None:
    head = b"POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n"

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([head + b"x" * 10])
            answer = await raw.read_answer()
            assert answer is not None and answer.status == 403
            async with asyncio.timeout(3):
                assert (await send_search(client, proxy))[0] == 200
        assert engine.requests[-1].start_line == b"POST /docs/_search HTTP/1.1"
        assert engine.connection_count == 2

    async def refuse_early(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        status = "403 Forbidden" if b"/early" in request.start_line else "200 OK"
        await answer_with(b"{}", status=status)(request, writer)

    run_with_proxy(check, refuse_early)


def test_a_client_that_leaves_in_the_middle_of_its_body_closes_the_engines_connection() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([b"POST /_bulk HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10])
            await asyncio.sleep(0.05)
        await asyncio.wait_for(engine.client_hung_up.wait(), 5)
        assert (await send_search(client, proxy))[0] == 200
        assert [request.start_line for request in engine.requests] == [b"POST /docs/_search HTTP/1.1"]

    run_with_proxy(check)


def test_a_body_that_ends_before_its_announced_length_closes_the_engines_connection() -> None:
    async def iterate_short_body() -> AsyncIterator[bytes]:
        yield b"x" * 10

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        upstream = Upstream(f"http://127.0.0.1:{engine.port}")
        with pytest.raises(UpstreamDown):
            await upstream.send("POST", "/_bulk", "", [(b"content-length", b"1000")], iterate_short_body())
        await asyncio.wait_for(engine.client_hung_up.wait(), 5)
        async with await upstream.send("GET", "/", "", [], None) as reply:
            assert reply.status == 200
        await upstream.close()
        assert [request.start_line for request in engine.requests] == [b"GET / HTTP/1.1"]

    run_with_proxy(check)


def test_an_engine_that_reads_nothing_more_does_not_hold_up_the_end_of_the_proxy() -> None:
    async def never_read(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        upstream = Upstream(f"http://127.0.0.1:{engine.port}")
        search = asyncio.create_task(upstream.send("POST", "/early", "", [], b"x" * 30_000_000))
        await asyncio.sleep(0.2)
        search.cancel()
        async with asyncio.timeout(5):
            await upstream.close()

    run_with_proxy(check, never_read)


def test_an_answer_may_have_hundreds_of_header_lines_and_long_ones() -> None:
    warnings = b"".join(b'Warning: 299 engine "%d %s"\r\n' % (i, b"w" * 100) for i in range(1000))

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.put(
            proxy.url + "/docs/_doc/1", data=RAW_BODY, max_headers=3000, max_field_size=300_000
        ) as answer:
            assert answer.status == 201
            assert len(answer.headers.getall("Warning")) == 1000
            assert len(answer.headers["X-Long"]) == 200_000

    extra = warnings + b"X-Long: " + b"x" * 200_000 + b"\r\n"
    run_with_proxy(check, answer_with(b"{}", status="201 Created", extra=extra))


def test_an_answer_that_is_not_http_is_named_as_such() -> None:
    async def answer_nonsense(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is no HTTP\r\n\r\n")

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        status, outcome, body = await send_search(client, proxy)
        assert (status, outcome) == (502, "error;engine")
        assert json.loads(body)["error"]["reason"].startswith("the engine's answer cannot be read: ")

    run_with_proxy(check, answer_nonsense)


def test_the_kernel_watches_connections_on_which_nothing_comes() -> None:
    address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 9200))
    with make_engine_socket(address) as engine_socket:
        assert engine_socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert engine_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        assert engine_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 180_000


def test_an_engine_that_is_down_is_the_outcome_of_every_kind_of_search() -> None:
    requests = {
        "/docs/_search": RAW_BODY,
        "/other/_search": RAW_BODY,
        "/_msearch": b'{"index":"docs"}\n' + RAW_BODY + b"\n",
        "/docs/_search/template": b"{}",
    }

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for path, body in requests.items():
            assert (await send_search(client, proxy, path=path, data=body))[:2] == (502, "error;engine")
        assert (await send_search(client, proxy, path="/docs/_count"))[:2] == (502, "")
        metrics = proxy.application.journal.metrics.render()
        assert b'querylift_searches_total{index="docs",outcome="error",reason="engine"} 3.0' in metrics
        assert b'querylift_searches_total{index="other",outcome="error",reason="engine"} 1.0' in metrics
        assert b'outcome="expanded",reason=""} 1.0' not in metrics

    run_with_proxy(check, engine="http://127.0.0.1:9")


HEALTH_CASES = [
    (answer_with(b"{}"), 200, "ok", "ok"),
    (answer_with(b"{}", status="401 Unauthorized"), 200, "ok", "ok"),
    (answer_with(b"{}", status="503 Busy"), 503, "engine-down", "the engine answers with status 503"),
]


@pytest.mark.parametrize(("handler", "status", "word", "sentence"), HEALTH_CASES)
def test_the_health_check_asks_the_engine(handler: Handler, status: int, word: str, sentence: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await _read_health(client, proxy) == (status, word, sentence)

    run_with_proxy(check, handler)


def test_the_health_check_says_that_the_engine_is_down() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        status, word, sentence = await _read_health(client, proxy)
        assert (status, word) == (503, "engine-down")
        assert sentence.startswith("the engine cannot be reached: ")

    run_with_proxy(check, engine="http://127.0.0.1:9")


async def _read_health(client: aiohttp.ClientSession, proxy: RunningProxy) -> tuple[int, str, str]:
    server = create_server(Admin(proxy.application), "127.0.0.1:0")
    await server.startup()
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        async with client.get(f"http://127.0.0.1:{port}/_querylift/health") as answer:
            health = await answer.json()
            return answer.status, health["status"], health["engine"]
    finally:
        await server.shutdown()
