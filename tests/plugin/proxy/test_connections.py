"""Clients that leave, and engines that cannot be reached or break off."""

import asyncio
import contextlib
import json
import socket
import time

import aiohttp
import pytest

from querylift.plugin.proxy.upstream import Upstream, UpstreamDown
from tests.helpers.proxy_scenarios import RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import ReceivedRequest, RunningProxy, StubEngine, answer_with


def test_the_engine_connection_is_closed_when_the_client_leaves_on_any_route() -> None:
    async def never_answer(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for method, path in (("GET", "/docs/_count"), ("POST", "/docs/_count")):
            engine.client_hung_up.clear()
            with pytest.raises(TimeoutError):
                await send_search(client, proxy, method=method, path=path, timeout=aiohttp.ClientTimeout(total=0.3),
                              data=RAW_BODY if method == "POST" else None)  # fmt: skip
            await asyncio.wait_for(engine.client_hung_up.wait(), 5)

    run_with_proxy(check, never_answer)


def test_the_engine_connection_of_a_search_is_closed_when_the_client_leaves() -> None:
    async def never_answer(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        with pytest.raises(TimeoutError):
            await send_search(client, proxy, timeout=aiohttp.ClientTimeout(total=0.3))
        await asyncio.wait_for(engine.client_hung_up.wait(), 5)

    run_with_proxy(check, never_answer)


def test_the_client_gets_a_502_when_the_engine_is_down() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        status, _, body = await send_search(client, proxy)
        assert status == 502
        assert json.loads(body)["error"]["type"] == "querylift_engine_unreachable"
        assert json.loads(body)["status"] == 502

    run_with_proxy(check, engine="http://127.0.0.1:9")


def test_a_broken_answer_is_cut_for_the_client_too() -> None:
    async def answer_with_broken_chunks(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        writer.transport.abort()

    async def answer_with_too_few_bytes(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500000\r\n\r\nhello")
        await writer.drain()
        writer.transport.abort()

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        with pytest.raises(aiohttp.ClientPayloadError):
            await send_search(client, proxy, path="/docs/_doc/1")
        status, _, body = await send_search(
            client, proxy
        )  # looked into before its first byte goes on, so it can be said
        assert (status, json.loads(body)["error"]["type"]) == (502, "querylift_engine_unreachable")

    for handler in (answer_with_broken_chunks, answer_with_too_few_bytes):
        run_with_proxy(check, handler)


def test_a_search_is_sent_again_when_the_engine_had_closed_an_idle_connection() -> None:
    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await answer_with()(request, writer)
        await writer.drain()
        writer.close()  # without saying so in a header

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for _ in range(20):
            assert (await send_search(client, proxy))[0] == 200

    run_with_proxy(check, handle)


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/docs/_doc/_search"), ("POST", "/docs/_doc/_search"), ("PUT", "/docs/_doc/1"), ("DELETE", "/docs")],
)
def test_a_write_is_never_sent_twice_when_the_engine_closes_its_connection(method: str, path: str) -> None:
    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        if request.start_line.startswith(method.encode() + b" " + path.encode() + b" "):
            writer.close()  # as an engine does that has stopped, perhaps after the write
        else:
            await answer_with()(request, writer)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy)  # so that there is a connection that is used again
        assert (await send_search(client, proxy, method=method, path=path, data=None))[0] == 502
        assert len(engine.requests) == 2

    run_with_proxy(check, handle)


def test_a_proxy_that_was_paused_while_it_connected_connects_again() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        upstream = Upstream(f"http://127.0.0.1:{engine.port}", connect_timeout_s=0.4)
        search = asyncio.create_task(upstream.send("GET", "/docs/_search", "", [(b"host", b"any")], None))
        await asyncio.sleep(0)
        time.sleep(0.5)  # what a paused machine does to the process
        async with await search as reply:
            assert reply.status == 200
        await upstream.close()

    run_with_proxy(check)


def test_an_engine_that_is_not_reached_in_time_is_reported_with_504() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
            for _ in range(2):  # one more than the backlog, so that the next one gets no answer
                connection = waiting.enter_context(socket.socket())
                connection.setblocking(False)
                connection.connect_ex(full.getsockname())
            upstream = Upstream(f"http://127.0.0.1:{full.getsockname()[1]}", connect_timeout_s=0.2)
            with pytest.raises(UpstreamDown, match="could not be reached in time") as down:
                await upstream.send("GET", "/docs/_search", "", [(b"host", b"any")], None)
            assert down.value.status == 504
            await upstream.close()

    asyncio.run(test())
