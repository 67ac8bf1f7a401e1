"""The routing that docker/nginx.conf ships, run by a real nginx."""

import asyncio
import gzip
import io
import os
from collections.abc import AsyncIterator

import aiohttp
import pytest

from querylift.index_tools.proxy_process import find_free_ports
from querylift.plugin.proxy import routes
from querylift.plugin.proxy.server import KEEP_ALIVE_S
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.nginx import (
    BODY,
    JSON_HEADERS,
    NGINX,
    RunningNginx,
    build_url,
    find_answering_server,
    returns_to_proxy,
    run_nginx,
    run_with_nginx,
)
from tests.helpers.paths import ROOT
from tests.helpers.raw_client import connect_raw, exchange_raw
from tests.helpers.upstream_stub import answer_with, run_proxy, run_stub_engine

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")
MEGABYTE = 1_048_576

ROUTES = [
    ("POST", "/docs/_search", "proxy"),
    ("GET", "/docs/_search", "proxy"),
    ("GET", "/_search", "proxy"),
    ("GET", "/_search?q=page&pretty", "proxy"),
    ("POST", "/docs/_search/", "proxy"),
    ("POST", "/_all/_search", "proxy"),
    ("POST", "/a,b*,-c/_search?ignore_unavailable=true", "proxy"),
    ("POST", "/caf%C3%A9/_search", "proxy"),
    ("POST", "/a%2Cb/_search", "proxy"),
    ("POST", "/%3Clogs-%7Bnow%2Fd%7D%3E/_search", "proxy"),
    ("POST", "/docs/_msearch", "proxy"),
    ("POST", "/_msearch?max_concurrent_searches=2", "proxy"),
    ("POST", "/docs/_async_search?wait_for_completion_timeout=1s", "proxy"),
    ("PUT", "/docs/_search", "engine"),
    ("POST", "/_search/scroll", "engine"),
    ("DELETE", "/_search/scroll", "engine"),
    ("POST", "/docs/_search/template", "engine"),
    ("POST", "/docs/_search/point_in_time?keep_alive=1m", "proxy"),
    ("POST", "/caf%C3%A9,b*/_pit?keep_alive=1m", "proxy"),
    ("DELETE", "/_search/point_in_time", "engine"),
    ("DELETE", "/_pit", "engine"),
    ("POST", "/_pit", "engine"),
    ("GET", "/docs/_doc/_pit", "engine"),
    ("POST", "/docs/_msearch/template", "engine"),
    ("GET", "/_async_search/abc", "engine"),
    ("DELETE", "/_async_search/abc", "engine"),
    ("GET", "/docs/_search_shards", "engine"),
    ("POST", "/docs/_count", "engine"),
    ("POST", "/_bulk", "engine"),
    ("POST", "/docs/_delete_by_query", "engine"),
    ("POST", "/docs/_explain/1", "engine"),
    ("POST", "/docs/_validate/query", "engine"),
    ("PUT", "/docs/_doc/_search", "engine"),
    ("GET", "/docs/_doc/_search", "engine"),
    ("GET", "/docs/_doc/a%2F_search", "engine"),
    ("POST", "/_render/_search", "engine"),
    ("POST", "//_search", "engine"),
    ("GET", "/docs/_doc/1?x=/_search", "engine"),
    ("GET", "/", "engine"),
    ("HEAD", "/docs", "engine"),
    ("GET", "/_cat/indices?v", "engine"),
    ("POST", "/docs/_rank_eval", "engine"),
    ("POST", "/docs/research", "engine"),
]


@needs_nginx
def test_only_search_routes_reach_the_proxy_and_every_path_arrives_unchanged() -> None:
    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        for method, path, target in ROUTES:
            async with client.request(
                method, build_url(nginx.url, path), data=BODY if method == "POST" else None
            ) as answer:
                assert (answer.status, answer.headers["X-Target"]) == (200, target), path
            assert nginx.get_server(target).requests[-1].path == path

    run_with_nginx(check)


@pytest.mark.parametrize(("method", "path", "target"), ROUTES)
def test_nginx_and_the_proxy_agree_on_which_requests_the_proxy_reads(method: str, path: str, target: str) -> None:
    raw_path = path.split("?")[0]
    is_read = routes.match_search_route(method, raw_path) or routes.match_pit_opening(method, raw_path)
    assert (is_read is not None) == (target == "proxy")


@needs_nginx
@pytest.mark.parametrize("path", ["/docs/_search", "/docs/_count"])
def test_bodies_and_headers_are_forwarded_both_ways(path: str) -> None:
    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        compressed_body = gzip.compress(BODY)
        request_headers = [
            ("Content-Type", "application/vnd.elasticsearch+json; compatible-with=9"),
            ("Content-Encoding", "gzip"),
            ("Accept-Encoding", "gzip"),
            ("Authorization", "Basic eDp5"),
            ("X-Opaque-Id", "one"),
            ("X-Opaque-Id", "two"),
            ("under_score", "kept"),
        ]
        async with client.post(nginx.url + path, data=compressed_body, headers=request_headers) as answer:
            assert answer.headers["X-Elastic-Product"] == "Elasticsearch"
            assert answer.headers.getall("Warning") == ["299 a", "299 b"]
            assert answer.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(await answer.read()) == b'{"took":1}'
        request = nginx.get_server("proxy" if path.endswith("_search") else "engine").requests[-1]
        assert request.body == compressed_body
        forwarded_headers = [(name, value) for name, value in request.headers if name in dict(request_headers)]
        assert forwarded_headers == request_headers
        assert dict(request.headers)["Host"] == f"127.0.0.1:{nginx.port}"

    run_with_nginx(check)


@needs_nginx
def test_a_bulk_body_of_20_megabytes_arrives_complete_with_a_length_or_in_chunks() -> None:
    body = os.urandom(MEGABYTE) * 20

    async def iterate_chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), MEGABYTE):
            yield body[start : start + MEGABYTE]

    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        for data in (io.BytesIO(body), iterate_chunks()):
            async with client.post(f"{nginx.url}/_bulk", data=data, headers=JSON_HEADERS) as answer:
                assert answer.status == 200
            assert nginx.engine.requests[-1].body == body

    run_with_nginx(check)


@needs_nginx
def test_searches_go_to_the_engine_while_the_proxy_is_down_and_return_when_it_is_up() -> None:
    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        assert await find_answering_server(client, nginx) == "proxy"
        await nginx.proxy.stop()
        for _ in range(20):
            assert await find_answering_server(client, nginx) == "engine"
            assert nginx.engine.requests[-1].body == BODY
        await nginx.proxy.start()
        assert await returns_to_proxy(client, nginx)

    run_with_nginx(check)


@needs_nginx
@pytest.mark.parametrize("fault", ["cut", "502", "504"])
def test_a_search_is_sent_to_the_engine_with_its_body_when_the_proxy_fails(fault: str) -> None:
    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        nginx.proxy.fault = fault
        assert await find_answering_server(client, nginx) == "engine"
        assert nginx.proxy.requests[-1].body == nginx.engine.requests[-1].body == BODY

    run_with_nginx(check)


@needs_nginx
def test_a_large_search_body_is_sent_to_the_engine_too() -> None:
    body = b'{"query":{"terms":{"id":[' + b"1," * MEGABYTE + b"1]}}}"

    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        await nginx.proxy.stop()
        assert await find_answering_server(client, nginx, body) == "engine"
        assert nginx.engine.requests[-1].body == body

    run_with_nginx(check)


@needs_nginx
@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_error_of_the_engine_that_the_proxy_passes_on_is_the_answer(status: int) -> None:
    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        nginx.proxy.fault = str(status)
        async with client.post(f"{nginx.url}/docs/_search", data=BODY, headers=JSON_HEADERS) as answer:
            assert (answer.status, answer.headers["X-Target"]) == (status, "proxy")
        assert not nginx.engine.requests

    run_with_nginx(check)


@needs_nginx
def test_a_write_that_fails_is_never_sent_twice() -> None:
    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        nginx.engine.fault = "cut"
        async with client.post(f"{nginx.url}/_bulk", data=BODY, headers=JSON_HEADERS) as answer:
            assert answer.status == 502
        assert len(nginx.engine.requests) == 1

    run_with_nginx(check)


@needs_nginx
@pytest.mark.parametrize("path", ["/docs/_search", "/docs/_bulk"])
def test_upgrades_and_trailers_end_at_nginx(path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nTE: trailers\r\n".encode()
    body = (
        b"Trailer: Authorization\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nAuthorization: Basic abc\r\n\r\n"
    )

    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        assert (await exchange_raw(nginx.port, head + body)).status == 200
        request = nginx.get_server("proxy" if path.endswith("_search") else "engine").requests[-1]
        names = {name.lower() for name, _ in request.headers}
        assert names.isdisjoint({"upgrade", "te", "trailer", "authorization"})
        assert request.body == b"{}"

    run_with_nginx(check)


@needs_nginx
@pytest.mark.parametrize(("path", "limit_mb"), [("/docs/_search", 10), ("/_bulk", 100)])
def test_a_body_that_is_announced_to_be_too_large_is_refused(path: str, limit_mb: int) -> None:
    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {limit_mb * MEGABYTE + 1}\r\n\r\n"
        assert (await exchange_raw(nginx.port, head.encode())).status == 413

    run_with_nginx(check)


@needs_nginx
def test_searches_over_the_rate_of_one_address_are_refused_and_other_requests_are_not() -> None:
    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        statuses = []
        for path in ["/docs/_search"] * 5 + ["/docs/_count"] * 5:
            async with client.post(nginx.url + path, data=BODY, headers=JSON_HEADERS) as answer:
                statuses.append(answer.status)
        assert statuses == [200, 200, 200, 429, 429] + [200] * 5

    run_with_nginx(check, {"rate=500r/s": "rate=1r/m", "burst=1000": "burst=2"})


@needs_nginx
def test_connections_over_the_number_of_one_address_are_refused() -> None:
    async def check(client: aiohttp.ClientSession, nginx: RunningNginx) -> None:
        async with connect_raw(nginx.port) as raw:
            await raw.send_segments([b"POST /_bulk HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"])
            assert (await exchange_raw(nginx.port, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")).status == 429

    run_with_nginx(check, {"limit_conn connections 256": "limit_conn connections 1"})


WEBSOCKET_CONFIGURATION = """
server {
    listen 127.0.0.1:%d;
    location /x/_search {
        proxy_pass http://127.0.0.1:%d;
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection "upgrade";
    }
    location / { return 403; }
}
"""
"""The usual block for WebSockets, in front of the proxy itself."""


@needs_nginx
@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "x"])
def test_no_request_is_smuggled_through_an_nginx_that_lets_upgrades_pass(upgrade: str) -> None:
    smuggled = b"DELETE /products HTTP/1.1\r\nHost: h\r\n\r\n"
    body = b"x" * 600_000 + smuggled
    head = f"POST /x/_search HTTP/1.1\r\nHost: h\r\nUpgrade: {upgrade}\r\nContent-Length: {len(body)}\r\n\r\n"

    async def main() -> None:
        (port,) = find_free_ports(1)
        async with (
            run_stub_engine(answer_with()) as engine,
            run_proxy(f"http://127.0.0.1:{engine.port}", ScriptedGenerator({})) as proxy,
            run_nginx(port, WEBSOCKET_CONFIGURATION % (port, proxy.port)),
            asyncio.timeout(30),
        ):
            for _ in range(3):
                assert (await exchange_raw(port, head.encode(), body)).status == 200
            assert [request.start_line.split()[0] for request in engine.requests] == [b"POST"] * 3
            assert all(request.body == body for request in engine.requests)

    asyncio.run(main())


def test_the_proxy_keeps_idle_connections_for_longer_than_nginx_does() -> None:
    """nginx closes idle connections after 60 s. The proxy must not close one first, or a search on it is lost."""
    assert "keepalive_timeout" not in (ROOT / "docker/nginx.conf").read_text()
    assert KEEP_ALIVE_S > 60
