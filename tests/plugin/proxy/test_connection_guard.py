"""Clients that send nothing, send slowly, take no answer, or are too many."""

import asyncio
import json
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from querylift.index_tools.proxy_process import find_free_ports, stop_process
from querylift.plugin.proxy.connection_guard import ConnectionLimits, count_clients
from tests.helpers.proxy_scenarios import RAW_BODY, run_with_proxy, send_search
from tests.helpers.raw_client import RawClient, connect_raw
from tests.helpers.upstream_stub import ReceivedRequest, RunningProxy, StubEngine, answer_with

HEAD = b"POST /docs/_bulk HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n"


def _look_after_clients(proxy: RunningProxy, in_s: float) -> None:
    """Do what the server does once a second, as if it were `in_s` seconds later."""
    now_s = asyncio.get_running_loop().time()
    proxy.server.guard.end_stalled_waits(proxy.server.server_state.connections, now_s + in_s)  # type: ignore[arg-type]


SLOW_REQUESTS = {
    "half a head": (HEAD, 31, "the head of the request came too slowly; send it faster"),
    "half a request line": (b"GET /do", 31, "the head of the request came too slowly; send it faster"),
    "a body that stops": (HEAD + b"\r\nabc", 61, "the body of the request came too slowly; send it faster"),
}


@pytest.mark.parametrize(("sent", "limit_s", "reason"), SLOW_REQUESTS.values(), ids=SLOW_REQUESTS.keys())
def test_a_request_that_does_not_come_is_refused(sent: bytes, limit_s: float, reason: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([sent])
            await asyncio.sleep(0.02)
            _look_after_clients(proxy, 0)
            _look_after_clients(proxy, limit_s - 2)
            assert len(proxy.server.server_state.connections) == 1
            _look_after_clients(proxy, limit_s)
            answer = await raw.read_answer()
            assert answer is not None and answer.status == 408
            assert json.loads(answer.body)["error"]["reason"] == reason
        if b"\r\n\r\n" in sent:
            await asyncio.wait_for(engine.client_hung_up.wait(), 5)
        assert engine.requests == []

    run_with_proxy(check)


def test_a_connection_on_which_nothing_ever_came_is_closed_and_an_idle_one_is_not() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy)
        async with connect_raw(proxy.port) as raw:
            await asyncio.sleep(0.02)
            _look_after_clients(proxy, 0)
            _look_after_clients(proxy, 31)
            assert await raw.is_closed_by_server()
        assert len(proxy.server.server_state.connections) == 1
        await send_search(client, proxy)

    run_with_proxy(check)


def test_a_body_that_goes_on_coming_is_never_refused() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([HEAD + b"\r\n"])
            for minutes in range(100):
                await raw.send_segments([b"x" * 10_000])
                await asyncio.sleep(0.002)
                _look_after_clients(proxy, minutes * 60)
            answer = await raw.read_answer()
            assert answer is not None and answer.status == 200

    run_with_proxy(check)


def test_an_engine_that_reads_slowly_is_not_the_clients_fault() -> None:
    is_over = asyncio.Event()

    async def wait_before_reading(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await is_over.wait()
        writer.transport.abort()

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            raw.writer.write(b"POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: 90000000\r\n\r\n" + b"x" * 60_000_000)
            await asyncio.sleep(0.5)  # until every buffer on the way is full
            _look_after_clients(proxy, 0)
            _look_after_clients(proxy, 1000)
            assert len(proxy.server.server_state.connections) == 1
            assert not engine.client_hung_up.is_set()
        is_over.set()

    run_with_proxy(check, wait_before_reading)


def test_a_client_that_does_not_take_its_answer_is_cut_off() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([b"GET /docs/_doc/1 HTTP/1.1\r\nHost: h\r\n\r\n"])
            await asyncio.sleep(0.5)
            _look_after_clients(proxy, 0)
            _look_after_clients(proxy, 59)
            assert len(proxy.server.server_state.connections) == 1
            _look_after_clients(proxy, 61)
            await asyncio.wait_for(engine.client_hung_up.wait(), 5)

    run_with_proxy(check, answer_with(b"x" * 60_000_000))


def test_a_client_that_does_not_take_the_end_of_its_last_answer_is_cut_off() -> None:
    """The server has closed the connection by then, and only the client's part of it is still to come."""

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as slow_client:
            slow_client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            slow_client.setblocking(False)
            await loop.sock_connect(slow_client, ("127.0.0.1", proxy.port))
            await asyncio.sleep(0.1)
            (connection,) = proxy.server.server_state.connections
            server_socket = connection.transport.get_extra_info("socket")
            server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            await loop.sock_sendall(slow_client, b"GET /docs/_doc/1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            await asyncio.sleep(0.5)
            assert connection.transport.is_closing()
            _look_after_clients(proxy, 0)
            _look_after_clients(proxy, 59)
            assert len(proxy.server.server_state.connections) == 1
            _look_after_clients(proxy, 61)
            await asyncio.sleep(0.1)
            assert len(proxy.server.server_state.connections) == 0

    run_with_proxy(check, answer_with(b"x" * 60_000))


async def _connect_half_sent(proxy: RunningProxy, stack: AsyncExitStack, count: int) -> list[RawClient]:
    clients = [await stack.enter_async_context(connect_raw(proxy.port)) for _ in range(count)]
    for raw in clients:
        await raw.send_segments([b"GET /docs"])
    return clients


def test_where_there_are_too_many_connections_the_one_idle_for_longest_makes_room() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with AsyncExitStack() as stack:
            clients = await _connect_half_sent(proxy, stack, 3)
            assert (await send_search(client, proxy))[0] == 200
            assert await clients[0].is_closed_by_server()
            await clients[1].send_segments([b"/_doc/1 HTTP/1.1\r\nHost: h\r\n\r\n"])
            answer = await clients[1].read_answer()
            assert answer is not None and answer.status == 200

    run_with_proxy(check, limits=ConnectionLimits(connections=3))


def test_no_request_that_is_under_way_makes_room_for_another() -> None:
    async def never_answer(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                raw = await stack.enter_async_context(connect_raw(proxy.port))
                await raw.send_segments([b"GET /docs/_doc/1 HTTP/1.1\r\nHost: h\r\n\r\n"])
            while len(engine.requests) < 3:
                await asyncio.sleep(0.01)
            raw = await stack.enter_async_context(connect_raw(proxy.port))
            answer = await raw.read_answer()
            assert answer is not None and answer.status == 503
            assert b"as many connections as it can serve" in answer.body
            assert not engine.client_hung_up.is_set()

    run_with_proxy(check, never_answer, limits=ConnectionLimits(connections=3))


def test_requests_that_a_client_sends_ahead_are_bounded() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as raw:
            await raw.send_segments([b"GET /docs/_doc/1 HTTP/1.1\r\nHost: h\r\n\r\n" * 1000])
            statuses = []
            while (answer := await raw.read_answer()) is not None:
                statuses.append(answer.status)
        assert statuses == [200] * 17
        assert len(engine.requests) == 17

    run_with_proxy(check)


def test_clients_leave_files_for_the_engine_and_for_the_admin_page() -> None:
    assert (count_clients(128), count_clients(1024), count_clients(65_536)) == (16, 464, 10_000)
    assert count_clients(resource.RLIM_INFINITY) == 10_000
    assert count_clients(20) == 1


def test_a_process_with_128_files_answers_searches_and_health_beside_200_half_sent_requests(tmp_path: Path) -> None:
    listen_port, admin_port = find_free_ports(2)
    config = tmp_path / "querylift.toml"

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        addresses = {"listen": f"127.0.0.1:{listen_port}", "admin": f"127.0.0.1:{admin_port}"}
        lines = [f'{key} = "{value}"' for key, value in addresses.items()]
        config.write_text("\n".join([f'engine = "http://127.0.0.1:{engine.port}"', *lines]))
        serve = [sys.executable, "-m", "querylift", "serve", "--config", str(config)]
        process = subprocess.Popen(
            ["bash", "-c", 'ulimit -n 128; exec "$@"', "bash", *serve], stderr=subprocess.DEVNULL
        )
        try:
            url = f"http://127.0.0.1:{listen_port}"
            await asyncio.to_thread(_wait_until_healthy, admin_port)
            async with AsyncExitStack() as stack:
                for _ in range(200):
                    raw = await stack.enter_async_context(connect_raw(listen_port))
                    raw.writer.write(b"POST /docs/_search HTTP/1.1\r\nHost: h\r\n")
                await asyncio.sleep(0.2)
                async with asyncio.timeout(5):
                    assert await asyncio.to_thread(_read_health, admin_port) == 200
                    async with client.post(url + "/docs/_search", data=RAW_BODY) as answer:
                        assert answer.status == 200
        finally:
            await asyncio.to_thread(stop_process, process)

    run_with_proxy(check)


def _read_health(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_querylift/health", timeout=5) as answer:
        return int(answer.status)


def _wait_until_healthy(port: int) -> None:
    deadline_s = time.monotonic() + 15
    while time.monotonic() < deadline_s:
        try:
            _read_health(port)
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the proxy did not come up")
