"""A page of another origin reaches the engine through the proxy as far as the engine allows it."""

import asyncio

import aiohttp
import pytest

from tests.helpers.proxy_scenarios import JSON_HEADERS, RAW_BODY, run_with_proxy
from tests.helpers.upstream_stub import ReceivedRequest, RunningProxy, StubEngine, answer_with

ORIGIN = "http://quepid.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-querylift",
}
ALLOWED = {
    "Access-Control-Allow-Origin": ORIGIN,
    "Access-Control-Allow-Methods": "OPTIONS,GET,POST",
    "Access-Control-Allow-Headers": "X-Requested-With,Content-Type,X-Querylift",
    "Access-Control-Expose-Headers": "X-Querylift",
    "Access-Control-Max-Age": "1728000",
    "Vary": "Origin",
}


async def _answer_as_engine(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    """Answer as an engine does whose `http.cors` allows the origin."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in ALLOWED.items()).encode()
    body = b"" if request.start_line.startswith(b"OPTIONS") else b'{"hits":{}}'
    await answer_with(body, extra=extra)(request, writer)


@pytest.mark.parametrize(
    "path", ["/docs/_search", "/docs/_msearch", "/docs/_search/point_in_time", "/_nodes/http", "/"]
)
def test_a_preflight_request_is_answered_by_the_engine(path: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.options(proxy.url + path, headers=PREFLIGHT) as answer:
            assert answer.status == 200
            assert {name: answer.headers[name] for name in ALLOWED} == ALLOWED
            assert "X-Querylift" not in answer.headers
        (request,) = engine.requests
        assert request.start_line == f"OPTIONS {path} HTTP/1.1".encode()
        for name, value in PREFLIGHT.items():
            assert request.get_header_values(name.lower().encode()) == [value.encode()]

    run_with_proxy(check, _answer_as_engine, sniffing_address="proxy.example:9280")


def test_an_expanded_search_keeps_the_headers_that_let_a_page_read_it() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        headers = JSON_HEADERS | {"Origin": ORIGIN}
        async with client.post(proxy.url + "/docs/_search", data=RAW_BODY, headers=headers) as answer:
            assert answer.headers["X-Querylift"] == "expanded"
            assert {name: answer.headers[name] for name in ALLOWED} == ALLOWED
        assert engine.requests[0].get_header_values(b"origin") == [ORIGIN.encode()]

    run_with_proxy(check, _answer_as_engine)


def test_an_origin_that_the_engine_refuses_is_refused() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.options(proxy.url + "/docs/_search", headers=PREFLIGHT) as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers

    run_with_proxy(check, answer_with(b"", status="403 Forbidden"))
