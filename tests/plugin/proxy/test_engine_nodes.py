"""An engine of several nodes: which node gets a request, and which one is left out."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack

import aiohttp
import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.proxy_process import find_free_ports, run_proxy
from querylift.plugin.engine.facts import find_answering_url
from querylift.plugin.engine.nodes import EngineNodes
from querylift.plugin.generators.engine_reader import EngineReader
from querylift.plugin.proxy.admin import Admin
from querylift.plugin.proxy.engine_check import check_settings_on_engine
from querylift.plugin.proxy.upstream import Upstream
from querylift.plugin.settings import parse_settings
from tests.helpers.engine_nodes import REFUSING_URL, listen_again, run_with_nodes
from tests.helpers.proxy_scenarios import send_search
from tests.helpers.upstream_stub import (
    ReceivedRequest,
    RunningProxy,
    StubEngine,
    answer_with,
    find_port,
    run_stub_engine,
    serve_application,
)


async def _hang_up(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    """Close the connection without an answer, as a node does that ends after it got a request."""
    writer.close()


def test_requests_go_to_the_nodes_in_turn() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, nodes: list[StubEngine]) -> None:
        for _ in range(6):
            assert (await send_search(client, proxy))[0] == 200
        assert [len(node.requests) for node in nodes] == [2, 2, 2]

    run_with_nodes(check, answer_with(), answer_with(), answer_with())


def test_no_request_fails_because_a_node_refuses_connections(caplog: pytest.LogCaptureFixture) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, nodes: list[StubEngine]) -> None:
        for method, path in [("POST", "/docs/_search"), ("PUT", "/docs/_doc/1"), ("GET", "/_cat/indices")] * 4:
            assert (await send_search(client, proxy, method=method, path=path))[0] == 200
        assert sum(len(node.requests) for node in nodes) == 12
        assert min(len(node.requests) for node in nodes) >= 5

    run_with_nodes(check, answer_with(), answer_with(), extra_urls=(REFUSING_URL,))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"the engine's node {REFUSING_URL} takes no connections and is left out: ")


def test_a_streamed_body_arrives_whole_at_the_next_node() -> None:
    async def iterate_body() -> AsyncIterator[bytes]:
        for part in (b"first,", b"second,", b"third"):
            yield part

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, nodes: list[StubEngine]) -> None:
        for _ in range(2):
            assert (await send_search(client, proxy, path="/_bulk", data=iterate_body()))[0] == 200
        assert [request.body for request in nodes[0].requests] == [b"first,second,third"] * 2

    run_with_nodes(check, answer_with(), extra_urls=(REFUSING_URL,))


@pytest.mark.parametrize(("method", "path"), [("PUT", "/docs/_doc/1"), ("POST", "/_bulk"), ("DELETE", "/docs")])
def test_a_write_that_may_have_arrived_is_not_sent_to_the_next_node(method: str, path: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, nodes: list[StubEngine]) -> None:
        assert (await send_search(client, proxy, method=method, path=path))[0] == 502
        assert sum(len(node.requests) for node in nodes) == 1

    run_with_nodes(check, _hang_up, _hang_up)


def test_a_search_whose_connection_breaks_is_repeated_on_another_node() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, nodes: list[StubEngine]) -> None:
        for _ in range(6):
            assert (await send_search(client, proxy))[0] == 200
        assert len(nodes[1].requests) == 6

    run_with_nodes(check, _hang_up, answer_with())


def test_a_node_to_which_no_connection_comes_about_in_time_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
            for _ in range(2):  # one more than the backlog, so that the next one gets no answer
                connection = waiting.enter_context(socket.socket())
                connection.setblocking(False)
                connection.connect_ex(full.getsockname())
            async with run_stub_engine(answer_with()) as node:
                urls = (f"http://127.0.0.1:{full.getsockname()[1]}", f"http://127.0.0.1:{node.port}")
                upstream = Upstream(urls, connect_timeout_s=0.2)
                for _ in range(3):
                    async with await upstream.send("POST", "/docs/_search", "q=private", [], b"{}") as reply:
                        assert reply.status == 200
                await upstream.close()
                assert len(node.requests) == 3

    asyncio.run(test())
    (warning,) = caplog.messages
    assert warning.endswith(" takes no connections and is left out: no connection in time")
    assert "private" not in warning


def test_when_all_nodes_are_left_out_they_are_tried_all_the_same() -> None:
    async def test() -> None:
        async with run_stub_engine(answer_with()) as node:
            pass
        urls = (REFUSING_URL, f"http://127.0.0.1:{node.port}")
        upstream = Upstream(urls)
        with pytest.raises(Exception, match="does not accept connections"):
            await upstream.send("GET", "/", "", [], None)
        async with listen_again(node), await upstream.send("GET", "/", "", [], None) as reply:
            assert reply.status == 200
        await upstream.close()

    asyncio.run(test())


async def _get_from(nodes: EngineNodes, session: aiohttp.ClientSession) -> int:
    async def send(url: str) -> int:
        async with session.get(url + "/docs/_count") as answer:
            return answer.status

    return await nodes.send(session, send)


def test_a_node_is_used_again_when_it_answers_a_search(caplog: pytest.LogCaptureFixture) -> None:
    statuses = iter(["503 Service Unavailable", "503 Service Unavailable"])  # its shards are not open yet

    async def answer(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        is_check = b"/_search" in request.start_line
        await answer_with(b"{}", status=next(statuses, "200 OK") if is_check else "200 OK")(request, writer)

    async def test() -> str:
        async with run_stub_engine(answer) as returning, run_stub_engine(answer_with()) as other:
            pass
        async with aiohttp.ClientSession() as session, listen_again(other):
            returning_url = f"http://127.0.0.1:{returning.port}"
            nodes = EngineNodes((returning_url, f"http://127.0.0.1:{other.port}"), first_pause_s=0.01)
            for _ in range(2):
                assert await _get_from(nodes, session) == 200
            assert nodes.list_left_out() == [returning_url]
            async with listen_again(returning), asyncio.timeout(10):
                while nodes.list_left_out():
                    await asyncio.sleep(0.01)
                for _ in range(4):
                    assert await _get_from(nodes, session) == 200
            await nodes.close()
        start_lines = [request.start_line.split(b" ")[1] for request in returning.requests]
        check = b"/_search?size=0&terminate_after=1&track_total_hits=false"
        assert start_lines == [check, check, check, b"/docs/_count", b"/docs/_count"]
        assert returning.requests[0].get_header_values(b"x-querylift") == [b"off"]
        return returning_url

    with caplog.at_level(logging.INFO):
        url = asyncio.run(test())
    assert caplog.messages[-1] == f"the engine's node {url} answers again"


def test_the_nodes_that_are_left_take_even_shares() -> None:
    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            async with run_stub_engine(answer_with()) as first, run_stub_engine(answer_with()) as second:
                urls = (f"http://127.0.0.1:{first.port}", REFUSING_URL, f"http://127.0.0.1:{second.port}")
                nodes = EngineNodes(urls)
                for _ in range(20):
                    assert await _get_from(nodes, session) == 200
                await nodes.close()
                assert abs(len(first.requests) - len(second.requests)) <= 1

    asyncio.run(test())


def test_an_answer_on_an_old_connection_does_not_end_the_absence_of_a_node() -> None:
    async def test() -> None:
        may_answer = asyncio.Event()
        node_url, other_url = "http://node", "http://other"

        async def send(url: str) -> str:
            if url == node_url and not may_answer.is_set():
                await may_answer.wait()  # as a slow search does that began before
            return url

        async def refuse(url: str) -> str:
            if url == node_url:
                raise aiohttp.ConnectionTimeoutError
            return url

        async with aiohttp.ClientSession() as session:
            nodes = EngineNodes((other_url, node_url))
            slow_search = asyncio.create_task(nodes.send(session, send))
            await asyncio.sleep(0)
            assert [await nodes.send(session, refuse) for _ in range(2)] == [other_url, other_url]
            may_answer.set()
            assert await slow_search == node_url
            assert nodes.list_left_out() == [node_url]
            await nodes.close()

    asyncio.run(test())


def test_the_only_node_is_never_left_out() -> None:
    async def test() -> None:
        async with aiohttp.ClientSession() as session:
            nodes = EngineNodes(REFUSING_URL)
            with pytest.raises(aiohttp.ClientConnectorError):
                await _get_from(nodes, session)
            assert nodes.list_left_out() == []

    asyncio.run(test())


def test_the_health_page_says_of_every_node_whether_it_answers() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, nodes: list[StubEngine]) -> None:
        async with serve_application(Admin(proxy.application)) as server:
            async with client.get(f"http://127.0.0.1:{find_port(server)}/_querylift/health") as answer:
                health = await answer.json()
        answering_url, busy_url = (f"http://127.0.0.1:{node.port}" for node in nodes)
        assert (answer.status, health["status"], health["engine"]) == (200, "ok", "ok")
        assert health["nodes"][answering_url] == "ok"
        assert health["nodes"][busy_url] == "the engine answers with status 503"
        assert health["nodes"][REFUSING_URL].startswith("the engine cannot be reached: ")

    run_with_nodes(check, answer_with(), answer_with(status="503 Busy"), extra_urls=(REFUSING_URL,))


def test_the_health_page_answers_503_only_when_no_node_answers() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, nodes: list[StubEngine]) -> None:
        async with serve_application(Admin(proxy.application)) as server:
            async with client.get(f"http://127.0.0.1:{find_port(server)}/_querylift/health") as answer:
                health = await answer.json()
        assert (answer.status, health["status"]) == (503, "engine-down")
        assert health["engine"].startswith(f"{REFUSING_URL}: the engine cannot be reached: ")
        assert health["engine"].endswith(f"http://127.0.0.1:{nodes[0].port}: the engine answers with status 503")

    run_with_nodes(check, answer_with(status="503 Busy"), extra_urls=(REFUSING_URL,))


def test_generators_and_checks_read_from_a_node_that_answers(caplog: pytest.LogCaptureFixture) -> None:
    body = b'{"hits":{"hits":[{"_id":"1","_score":1}]},"fields":{"_id":{}}}'

    async def test() -> None:
        async with run_stub_engine(answer_with(body, extra=b"content-type: application/json\r\n")) as node:
            urls = (REFUSING_URL, f"http://127.0.0.1:{node.port}")
            reader = EngineReader(urls)
            await reader.start()
            for _ in range(3):
                assert [hit["_id"] for hit in await reader.search_documents("docs", {})] == ["1"]
            await reader.close()
            settings = parse_settings({"engine": urls, "index": {"docs": {}}})
            await check_settings_on_engine(settings)
            assert await find_answering_url(settings, timeout_s=5) == urls[1]

    asyncio.run(test())
    assert "were not checked" not in caplog.text


def test_the_order_of_the_nodes_does_not_change_the_keys_of_the_cache() -> None:
    assert EngineReader(("http://a", "http://b")).engine_digest == EngineReader(("http://b", "http://a")).engine_digest
    assert EngineReader("http://a").engine_digest == EngineReader(("http://a",)).engine_digest == "54df484b"


@pytest.mark.engine
def test_serve_names_every_node_and_commands_pass_over_one_that_is_down(opensearch: str) -> None:
    down_url = f"http://127.0.0.1:{find_free_ports(1)[0]}"
    settings = {"engine": [down_url, opensearch]}
    with run_proxy(settings) as proxy:
        assert f"-> {down_url}, {opensearch}, " in proxy.log.read_text()
        assert proxy.read_health()["nodes"][opensearch] == "ok"
    with Engine(parse_settings(settings)) as engine:
        assert engine.read_info().distribution == "opensearch"
