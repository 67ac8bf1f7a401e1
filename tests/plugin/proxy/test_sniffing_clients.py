"""Clients that ask for the nodes' addresses stay with the proxy when `sniffing_address` is set."""

import asyncio
import gzip
import json
import signal
import time
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.proxy_process import run_proxy
from querylift.plugin.proxy.node_addresses import asks_for_addresses
from tests.helpers.proxy_scenarios import run_with_proxy
from tests.helpers.upstream_stub import ReceivedRequest, RunningProxy, StubEngine, answer_with

NODES: dict[str, Any] = {
    "cluster_name": "shop",
    "nodes": {
        "n1": {
            "name": "first",
            "roles": ["data"],
            "version": "3.8.0",
            "http": {"bound_address": ["[::1]:9200"], "publish_address": "a.example/10.0.0.1:9200", "max": 1},
        },
        "n2": {"name": "second", "roles": ["cluster_manager"], "http": {"publish_address": "10.0.0.2:9200"}},
        "n3": {"name": "without http"},
    },
}
ADDRESS = "proxy.example:9280"


@pytest.mark.parametrize(
    ("method", "path", "asks"),
    [
        ("GET", "/_nodes/http", True),
        ("GET", "/_nodes/_all/http", True),
        ("GET", "/_nodes/_all/http/", True),
        ("GET", "/_nodes/_local/http,os", True),
        ("GET", "/_nodes/http,settings", True),
        ("GET", "/_nodes/http%2Csettings", True),
        ("POST", "/_nodes/http", False),
        ("GET", "/_nodes", False),
        ("GET", "/_nodes/http/stats", False),
        ("GET", "/_nodes/stats", False),
        ("GET", "/docs/_nodes/http", False),
    ],
)
def test_requests_for_addresses_are_known_by_their_path(method: str, path: str, asks: bool) -> None:
    assert asks_for_addresses(method, path) is asks


def test_the_address_of_every_node_is_replaced_and_nothing_else() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.get(proxy.url + "/_nodes/http?timeout=1s", headers={"Accept-Encoding": "gzip"}) as answer:
            assert (answer.status, answer.headers["X-Node"]) == (200, "n1")
            assert await answer.json() == {
                "cluster_name": "shop",
                "nodes": {
                    "n1": {
                        "name": "first",
                        "roles": ["data"],
                        "version": "3.8.0",
                        "http": {"bound_address": [ADDRESS], "publish_address": ADDRESS, "max": 1},
                    },
                    "n2": {"name": "second", "roles": ["cluster_manager"], "http": {"publish_address": ADDRESS}},
                    "n3": {"name": "without http"},
                },
            }
        assert engine.requests[0].start_line == b"GET /_nodes/http?timeout=1s HTTP/1.1"
        assert engine.requests[0].get_header_values(b"accept-encoding") == []

    extra = b"Content-Type: application/json\r\nX-Node: n1\r\n"
    run_with_proxy(check, answer_with(json.dumps(NODES).encode(), extra=extra), sniffing_address=ADDRESS)


@pytest.mark.parametrize(
    ("body", "extra", "settings"),
    [
        (json.dumps(NODES).encode(), b"", {}),
        (b"---\nnodes:\n", b"Content-Type: application/yaml\r\n", {"sniffing_address": ADDRESS}),
        (b'{"nodes":[]}', b"", {"sniffing_address": ADDRESS}),
        (b'{"cluster_name":"shop","nodes":{}}', b"", {"sniffing_address": ADDRESS}),
        (b" " * 5_000_000 + json.dumps(NODES).encode(), b"", {"sniffing_address": ADDRESS}),
        (gzip.compress(b'{"nodes":{}}'), b"Content-Encoding: gzip\r\n", {"sniffing_address": ADDRESS}),
        (b"", b"", {"sniffing_address": ADDRESS}),
    ],
    ids=["no-setting", "yaml", "odd-json", "no-nodes", "very-long", "compressed", "empty"],
)
def test_any_other_answer_passes_unchanged(body: bytes, extra: bytes, settings: dict[str, Any]) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.get(proxy.url + "/_nodes/_all/http") as answer:
            assert answer.status == 200
            assert await answer.read() == body

    run_with_proxy(check, answer_with(body, extra=extra), **settings)


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one() -> None:
    async def break_off(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + json.dumps(NODES).encode())
        await writer.drain()
        writer.close()

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.get(proxy.url + "/_nodes/http") as answer:
            assert answer.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()

    run_with_proxy(check, break_off, sniffing_address=ADDRESS)


def _list_hosts(client: Any) -> set[str]:
    """Return the URLs to which a client of opensearch-py sends its requests."""
    return {connection.host for connection in client.transport.connection_pool.connections}


@pytest.mark.engine
def test_a_client_that_sniffs_sends_its_searches_through_the_proxy(opensearch: str) -> None:
    from opensearchpy import OpenSearch

    with run_proxy({"engine": opensearch}) as proxy:
        with OpenSearch([proxy.url], sniff_on_start=True) as client:
            assert _list_hosts(client) == {opensearch}  # so its searches pass Querylift by
        address = proxy.url.removeprefix("http://")
        proxy.config.write_text(f'sniffing_address = "{address}"\n{proxy.config.read_text()}', encoding="utf-8")
        proxy.process.send_signal(signal.SIGHUP)
        while "the settings were read again" not in proxy.log.read_text():
            time.sleep(0.02)
        with OpenSearch([proxy.url], sniff_on_start=True, sniff_on_connection_fail=True, sniffer_timeout=1) as client:
            assert _list_hosts(client) == {proxy.url}
            assert client.info()["version"]["distribution"] == "opensearch"
            (node,) = client.transport.perform_request("GET", "/_nodes/http")["nodes"].values()
            assert node["http"]["publish_address"] == address
            assert node["version"] == client.info()["version"]["number"]
