"""The three checks of the admin page: live, ready and health."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.proxy_process import find_free_ports
from querylift.index_tools.proxy_process import run_proxy as run_proxy_process
from querylift.plugin.proxy.admin import Admin
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.proxy_scenarios import JSON_HEADERS, RAW_BODY
from tests.helpers.upstream_stub import answer_with, find_port, run_proxy, run_stub_engine, serve_application

Ask = Callable[[str], Awaitable[tuple[int, dict[str, Any]]]]


def run_with_admin_page(engine_port: int, check: Callable[[Ask], Awaitable[None]], **settings: Any) -> None:
    """Run `check` with a function that asks the admin page of a proxy. Nothing has to listen on `engine_port`."""

    async def main() -> None:
        async with (
            run_proxy(f"http://127.0.0.1:{engine_port}", ScriptedGenerator({}), **settings) as proxy,
            serve_application(Admin(proxy.application)) as server,
            aiohttp.ClientSession() as client,
        ):

            async def ask(path: str) -> tuple[int, dict[str, Any]]:
                async with client.get(f"http://127.0.0.1:{find_port(server)}{path}") as answer:
                    return answer.status, await answer.json()

            await check(ask)

    asyncio.run(main())


@pytest.fixture
def free_port() -> int:
    return find_free_ports(1)[0]


def test_a_proxy_is_live_without_an_engine_and_without_the_token(free_port: int) -> None:
    async def check(ask: Ask) -> None:
        assert await ask("/_querylift/live") == (200, {"status": "alive"})

    run_with_admin_page(free_port, check, admin_token="secret")


def test_a_proxy_is_ready_when_the_engine_has_answered_once(free_port: int) -> None:
    async def check(ask: Ask) -> None:
        status, report = await ask("/_querylift/ready")
        assert (status, report["status"]) == (503, "engine-down")
        assert "cannot be reached" in report["reason"]
        server = await asyncio.start_server(_answer_once, "127.0.0.1", free_port)
        assert await ask("/_querylift/ready") == (200, {"status": "ready"})
        server.close()
        await server.wait_closed()
        assert await ask("/_querylift/ready") == (200, {"status": "ready"})
        assert (await ask("/_querylift/health"))[0] == 503

    run_with_admin_page(free_port, check, admin_token="secret")


async def _answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    await writer.drain()
    writer.close()


def test_another_path_is_answered_with_the_paths_that_there_are(free_port: int) -> None:
    async def check(ask: Ask) -> None:
        status, report = await ask("/_querylift/readiness")
        assert status == 404
        assert "/_querylift/ready" in report["error"]

    run_with_admin_page(free_port, check)


def test_a_proxy_that_was_told_to_stop_is_not_ready_and_finishes_its_searches() -> None:
    async def main() -> None:
        search_came, engine_may_answer = asyncio.Event(), asyncio.Event()

        async def answer(request: Any, writer: asyncio.StreamWriter) -> None:
            if b"_search" in request.start_line:
                search_came.set()
                await engine_may_answer.wait()
            await answer_with(b'{"hits":{"total":7}}')(request, writer)

        async with run_stub_engine(answer) as engine, aiohttp.ClientSession() as client:
            settings = {"engine": f"http://127.0.0.1:{engine.port}"}
            process = run_proxy_process(settings)
            proxy = await asyncio.to_thread(process.__enter__)
            search = asyncio.ensure_future(_search(client, proxy.url))
            await search_came.wait()
            proxy.process.send_signal(signal.SIGTERM)
            assert (
                await _wait_until_draining(client, proxy.admin_url)
                == "the process was told to stop, and finishes its searches"
            )
            engine_may_answer.set()
            assert json.loads(await search) == {"hits": {"total": 7}}
            assert await asyncio.to_thread(proxy.process.wait, 15) == 0
            await asyncio.to_thread(process.__exit__, None, None, None)

    asyncio.run(main())


async def _search(client: aiohttp.ClientSession, url: str) -> bytes:
    async with client.post(f"{url}/docs/_search", data=RAW_BODY, headers=JSON_HEADERS) as answer:
        return await answer.read()


async def _wait_until_draining(client: aiohttp.ClientSession, admin_url: str) -> str:
    while True:
        async with client.get(f"{admin_url}/_querylift/ready") as answer:
            report = await answer.json()
            if answer.status == 503 and report["status"] == "draining":
                return str(report["reason"])
        await asyncio.sleep(0.05)
