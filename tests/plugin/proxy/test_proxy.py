"""What goes over the wire: everything as it came, but for the searches that are expanded."""

import asyncio
import contextlib
import gzip
import io
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from querylift.plugin.errors import GeneratorError
from querylift.plugin.expansion import Expansion
from querylift.plugin.proxy import routes
from querylift.plugin.proxy.upstream import Upstream, UpstreamDown
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.upstream_stub import Front, Handler, Received, StubEngine, answering, proxy_before, stub_engine

BODY = {"query": {"match": {"text": "download a page"}}}
RAW = json.dumps(BODY).encode()
JSON = {"Content-Type": "application/json"}
Test = Callable[[aiohttp.ClientSession, Front, StubEngine], Awaitable[None]]


def _drive(
    test: Test, handler: Handler | None = None, *, generator: ScriptedGenerator | None = None, **settings: object
) -> None:
    made = generator or ScriptedGenerator({"download a page": Expansion(text="urlopen fetches")})

    async def main() -> None:
        async with (
            stub_engine(handler or answering()) as engine,
            proxy_before(f"http://127.0.0.1:{engine.port}", made, **settings) as front,
            aiohttp.ClientSession(auto_decompress=False) as client,
        ):
            async with asyncio.timeout(20):
                await test(client, front, engine)

    asyncio.run(main())


async def _search(client: aiohttp.ClientSession, front: Front, **options: Any) -> tuple[int, str, bytes]:
    path = options.pop("path", "/docs/_search")
    options.setdefault("data", RAW)
    options.setdefault("headers", JSON)
    async with client.request(options.pop("method", "POST"), front.url + path, **options) as answer:
        return answer.status, answer.headers.get("X-Querylift", ""), await answer.read()


def test_a_search_is_expanded_and_then_cached() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        assert (await _search(client, front))[:2] == (200, "expanded")
        assert (await _search(client, front))[:2] == (200, "cached")
        sent = [json.loads(r.body)["query"]["bool"] for r in engine.received]
        assert sent[0] == sent[1]
        assert sent[0]["must"] == [{"match": {"text": "download a page"}}]
        assert [r.header(b"content-length") for r in engine.received] == [
            [str(len(r.body)).encode()] for r in engine.received
        ]

    _drive(test)


@pytest.mark.parametrize("switch", ["off", "false", "0", "OFF"])
def test_a_request_header_switches_expansion_off(switch: str) -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        answer = await _search(client, front, headers=JSON | {"X-Querylift": switch})
        assert answer[1] == "skipped;off"
        assert engine.received[0].body == RAW

    _drive(test)


@pytest.mark.parametrize(
    ("path", "header"),
    [("/other/_search", "skipped;index"), ("/_search", "skipped;index"), ("/docs/_count", ""), ("/docs/_doc/1", ""),
     ("/docs/_delete_by_query", ""), ("/docs/_update_by_query", ""), ("/docs/_search/template", ""), ("/_search/scroll", ""),
     ("/docs/_explain/1", ""), ("/docs/_validate/query", ""), ("/_reindex", ""), ("/docs/_search_shards", ""),
     ("/_msearch/template", "")],
)  # fmt: skip
def test_what_is_not_an_allowed_search_goes_through_byte_for_byte(path: str, header: str) -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        assert await _search(client, front, path=path) == (200, header, b'{"hits":{}}')
        assert (engine.received[0].start_line, engine.received[0].body) == (f"POST {path} HTTP/1.1".encode(), RAW)

    _drive(test)


def test_odd_paths_and_parameters_reach_the_engine_as_they_were_written() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        line = b"GET /a%2Fb/%E4%B8%AD/_doc/x%20y?q=a+b&q=%zz&empty= HTTP/1.1"
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(line + b"\r\nHost: h\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert engine.received[0].start_line == line

    _drive(test)


def test_headers_survive_both_ways_and_hop_by_hop_ones_do_not() -> None:
    extra = b"X-Elastic-Product: Elasticsearch\r\nWarning: 299 a\r\nWarning: 299 b\r\nSet-Cookie: a=1\r\n"
    extra += b"Connection: x-hop\r\nX-Hop: 1\r\n"

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        sent = [("Content-Type", "application/json"), ("X-Tag", "1"), ("X-Tag", "2"), ("Authorization", "Basic abc"),
                ("Connection", "keep-alive, x-mine"), ("X-Mine", "1"), ("TE", "trailers")]  # fmt: skip
        async with client.post(front.url + "/docs/_search", data=RAW, headers=sent) as answer:
            assert answer.headers.getall("Warning") == ["299 a", "299 b"]
            assert answer.headers["X-Elastic-Product"] == "Elasticsearch"
            assert answer.headers["Set-Cookie"] == "a=1"
            assert "X-Hop" not in answer.headers
        got = engine.received[0]
        assert got.header(b"x-tag") == [b"1", b"2"]
        assert got.header(b"authorization") == [b"Basic abc"]
        assert got.header(b"x-mine") == got.header(b"te") == []
        assert got.header(b"host") == [f"127.0.0.1:{engine.port}".encode()]

    _drive(test, answering(extra=extra))


@pytest.mark.parametrize(
    "media_type",
    ["application/json; charset=UTF-8", "application/vnd.elasticsearch+json; compatible-with=9", "APPLICATION/JSON"],
)
def test_vendor_media_types_are_read(media_type: str) -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        assert (await _search(client, front, headers={"Content-Type": media_type}))[1] == "expanded"
        assert engine.received[0].header(b"content-type") == [media_type.encode()]

    _drive(test)


@pytest.mark.parametrize("media_type", ["application/yaml", "application/smile", "application/cbor", "text/plain"])
def test_other_media_types_are_not(media_type: str) -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        assert (await _search(client, front, headers={"Content-Type": media_type}))[1] == "skipped;encoding"
        assert engine.received[0].body == RAW

    _drive(test)


def test_a_gzip_body_is_read_and_sent_plain_once_it_is_rewritten() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        headers = JSON | {"Content-Encoding": "gzip"}
        assert (await _search(client, front, data=gzip.compress(RAW), headers=headers))[1] == "expanded"
        assert engine.received[0].header(b"content-encoding") == []
        assert b"urlopen" in engine.received[0].body

    _drive(test)


def test_a_gzip_bomb_is_not_opened_and_goes_on_as_it_came() -> None:
    bomb = gzip.compress(b'{"query": "' + b"a" * 50_000_000)
    assert len(bomb) < 100_000

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        headers = JSON | {"Content-Encoding": "gzip"}
        assert (await _search(client, front, data=bomb, headers=headers))[1] == "skipped;too-large"
        assert engine.received[0].body == bomb
        assert engine.received[0].header(b"content-encoding") == [b"gzip"]

    _drive(test)


@pytest.mark.parametrize("damaged", [b"\x1f\x8b junk", gzip.compress(RAW)[:-9], RAW])
def test_a_body_that_is_no_gzip_goes_on_as_it_came(damaged: bytes) -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        headers = JSON | {"Content-Encoding": "gzip"}
        assert (await _search(client, front, data=damaged, headers=headers))[1] == "skipped;encoding"
        assert engine.received[0].body == damaged

    _drive(test)


def test_a_search_larger_than_the_limit_streams_through() -> None:
    large = json.dumps(BODY | {"x": "y" * 3_000_000}).encode()

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        assert (await _search(client, front, data=io.BytesIO(large)))[1] == "skipped;too-large"
        assert engine.received[0].body == large

    _drive(test)


def test_a_bulk_body_of_unknown_length_streams_through() -> None:
    async def chunks() -> Any:
        for _ in range(200):
            yield b"x" * 50_000

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        assert (await _search(client, front, path="/_bulk", data=chunks()))[0] == 200
        assert len(engine.received[0].body) == 10_000_000

    _drive(test)


def test_a_search_in_the_url_is_expanded_into_the_body() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        parameters = {"source": RAW.decode(), "source_content_type": "application/json", "size": "3"}
        answer = await _search(client, front, method="GET", params=parameters, data=None, headers={})
        assert answer[1] == "expanded"
        got = engine.received[0]
        assert got.start_line == b"GET /docs/_search?size=3 HTTP/1.1"
        assert b"urlopen" in got.body
        assert got.header(b"content-type") == [b"application/json"]

    _drive(test)


def test_a_search_in_the_url_that_is_not_expanded_stays_there() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        path = "/other/_search?source=%7B%7D&source_content_type=application/json"
        assert (await _search(client, front, method="GET", path=path, data=None, headers={}))[1] == "skipped;index"
        assert engine.received[0].start_line == f"GET {path} HTTP/1.1".encode()

    _drive(test)


def test_an_msearch_expands_each_search_by_its_own_index() -> None:
    lines = b'{"index":"docs"}\n' + RAW + b'\n{"index":"other"}\n' + RAW + b"\n"

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        headers = {"Content-Type": "application/x-ndjson"}
        assert (await _search(client, front, path="/_msearch", data=lines, headers=headers))[1] == "expanded"
        sent = engine.received[0].body.split(b"\n")
        assert b"urlopen" in sent[1]
        assert sent[2:] == [b'{"index":"other"}', RAW, b""]

    _drive(test)


def _refusing_expanded(status: str) -> Handler:
    async def handle(request: Received, writer: asyncio.StreamWriter) -> None:
        refused = b"urlopen" in request.body
        await answering(b'{"error":"too_many_clauses"}' if refused else b"{}", status=status if refused else "200 OK")(
            request, writer
        )

    return handle


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error"])
def test_an_expanded_search_that_the_engine_refuses_is_sent_again_as_it_came(status: str) -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        assert await _search(client, front) == (200, "error;rejected", b"{}")
        assert [b"urlopen" in r.body for r in engine.received] == [True, False]
        assert (await _search(client, front))[1] == "skipped;paused"

    _drive(test, _refusing_expanded(status))


def test_a_search_that_the_engine_never_liked_does_not_pause_its_index() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        for _ in range(2):
            assert (await _search(client, front))[:2] == (400, "error;rejected")

    _drive(test, answering(b"{}", status="400 Bad Request"))


def test_an_msearch_with_a_bad_search_that_is_not_ours_is_sent_once() -> None:
    answers = b'{"responses":[{"status":200},{"error":{},"status":400}]}'

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        lines = b'{"index":"docs"}\n' + RAW + b'\n{"index":"other"}\n{}\n'
        assert await _search(client, front, path="/_msearch", data=lines) == (200, "expanded", answers)
        assert len(engine.received) == 1

    _drive(test, answering(answers))


def test_an_overloaded_engine_is_not_asked_twice() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        assert (await _search(client, front))[:2] == (429, "expanded")
        assert len(engine.received) == 1

    _drive(test, _refusing_expanded("429 Too Many Requests"))


def test_an_msearch_in_which_the_engine_refuses_one_search_is_sent_again_as_it_came() -> None:
    async def handle(request: Received, writer: asyncio.StreamWriter) -> None:
        one = b'{"error":{},"status":400}' if b"urlopen" in request.body else b'{"status":200}'
        await answering(b'{"responses":[' + one + b"]}")(request, writer)

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        answer = await _search(client, front, path="/_msearch", data=b'{"index":"docs"}\n' + RAW + b"\n")
        assert answer == (200, "error;rejected", b'{"responses":[{"status":200}]}')

    _drive(test, handle)


@pytest.mark.parametrize("form", ["gzip", "pretty"])
def test_a_refusal_is_seen_in_every_form_that_a_client_may_ask_for(form: str) -> None:
    async def handle(request: Received, writer: asyncio.StreamWriter) -> None:
        one = {"error": {}, "status": 400} if b"urlopen" in request.body else {"status": 200}
        body = json.dumps({"responses": [one]}, indent=2).encode()
        extra = b"content-encoding: gzip\r\n" if form == "gzip" else b""
        await answering(gzip.compress(body) if form == "gzip" else body, extra=extra)(request, writer)

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        answer = await _search(client, front, path="/_msearch", data=b'{"index":"docs"}\n' + RAW + b"\n")
        assert answer[:2] == (200, "error;rejected")
        assert (await _search(client, front))[1] == "skipped;paused"

    _drive(test, handle)


@pytest.mark.parametrize("query", ["?filter_path=responses.hits.hits._id", "?format=yaml"])
def test_an_msearch_whose_answer_would_hide_a_refusal_is_left_alone(query: str) -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        lines = b'{"index":"docs"}\n' + RAW + b"\n"
        assert (await _search(client, front, path="/_msearch" + query, data=lines))[1] == "skipped;encoding"
        assert engine.received[0].body == lines

    _drive(test)


def test_an_expanded_search_that_loses_a_shard_is_sent_again_as_it_came() -> None:
    async def handle(request: Received, writer: asyncio.StreamWriter) -> None:
        failed = b"1" if b"urlopen" in request.body else b"0"
        await answering(b'{"took":1,"_shards":{"total":2,"failed":' + failed + b'},"hits":{}}')(request, writer)

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        status, outcome, body = await _search(client, front)
        assert (status, outcome, b'"failed":0' in body) == (200, "error;rejected", True)

    _drive(test, handle)


@pytest.mark.parametrize("target", ["*@127.0.0.1:1/x", "*"])
def test_a_target_that_is_no_path_cannot_choose_the_host(target: str) -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(f"OPTIONS {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
        assert engine.received == []

    _drive(test)


def test_a_client_that_leaves_is_noticed_on_any_route() -> None:
    async def never(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        for method, path in (("GET", "/docs/_count"), ("POST", "/docs/_count")):
            engine.hung_up.clear()
            with pytest.raises(TimeoutError):
                await _search(client, front, method=method, path=path, timeout=aiohttp.ClientTimeout(total=0.3),
                              data=RAW if method == "POST" else None)  # fmt: skip
            await asyncio.wait_for(engine.hung_up.wait(), 5)

    _drive(test, never)


def test_documents_that_speak_of_status_400_are_no_refusal() -> None:
    hits = b'{"responses":[{"hits":{"hits":[{"_source":{"status":400}}]},"status":200}]}'

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        answer = await _search(client, front, path="/_msearch", data=b'{"index":"docs"}\n' + RAW + b"\n")
        assert answer == (200, "expanded", hits)
        assert len(engine.received) == 1

    _drive(test, answering(hits))


def test_a_generator_that_fails_is_seen_in_the_header_alone() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        assert await _search(client, front) == (200, "error;generator", b'{"hits":{}}')
        assert engine.received[0].body == RAW

    _drive(test, generator=ScriptedGenerator({"download a page": GeneratorError("dead")}))


def test_a_generator_that_is_slow_costs_the_budget_and_no_more() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        async with asyncio.timeout(2):
            assert (await _search(client, front))[1] == "late;budget"
        assert engine.received[0].body == RAW

    _drive(test, generator=ScriptedGenerator({"download a page": Expansion(text="words")}, delay_s=60), budget_ms=30)


def test_an_engine_that_is_down_is_said_to_be() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        status, _, body = await _search(client, front)
        assert status == 502
        assert json.loads(body)["error"]["type"] == "querylift_engine_unreachable"
        assert json.loads(body)["status"] == 502

    _drive(test, engine="http://127.0.0.1:9")


def test_an_answer_that_breaks_off_is_cut_and_not_ended() -> None:
    async def chunked(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        writer.transport.abort()

    async def counted(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500000\r\n\r\nhello")
        await writer.drain()
        writer.transport.abort()

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        with pytest.raises(aiohttp.ClientPayloadError):
            await _search(client, front, path="/docs/_doc/1")
        status, _, body = await _search(client, front)  # looked into before its first byte goes on, so it can be said
        assert (status, json.loads(body)["error"]["type"]) == (502, "querylift_engine_unreachable")

    for handler in (chunked, counted):
        _drive(test, handler)


def test_a_large_expanded_search_reaches_the_engine_whole() -> None:
    body = BODY | {"ext": {"note": "y" * 200_000}}

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        assert (await _search(client, front, data=json.dumps(body).encode()))[1] == "expanded"
        assert json.loads(engine.received[0].body)["ext"] == body["ext"]

    _drive(test)


def test_a_client_that_leaves_takes_its_search_off_the_engine() -> None:
    async def never(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        with pytest.raises(TimeoutError):
            await _search(client, front, timeout=aiohttp.ClientTimeout(total=0.3))
        await asyncio.wait_for(engine.hung_up.wait(), 5)

    _drive(test, never)


def test_a_kept_connection_that_the_engine_closed_is_opened_anew_for_a_search() -> None:
    async def handle(request: Received, writer: asyncio.StreamWriter) -> None:
        await answering()(request, writer)
        await writer.drain()
        writer.close()  # without saying so in a header

    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        for _ in range(20):
            assert (await _search(client, front))[0] == 200

    _drive(test, handle)


def test_a_proxy_that_was_paused_while_it_connected_still_answers() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        upstream = Upstream(f"http://127.0.0.1:{engine.port}", connect_timeout_s=0.4)
        search = asyncio.create_task(upstream.send("GET", "/docs/_search", "", [(b"host", b"any")], None))
        await asyncio.sleep(0)
        time.sleep(0.5)  # what a paused machine does to the process
        async with await search as reply:
            assert reply.status == 200
        await upstream.close()

    _drive(test)


def test_an_engine_that_is_not_reached_in_time_is_said_with_504() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
            for _ in range(2):  # one more than the backlog, so that the next one gets no answer
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            upstream = Upstream(f"http://127.0.0.1:{full.getsockname()[1]}", connect_timeout_s=0.2)
            with pytest.raises(UpstreamDown, match="could not be reached in time") as down:
                await upstream.send("GET", "/docs/_search", "", [(b"host", b"any")], None)
            assert down.value.status == 504
            await upstream.close()

    asyncio.run(test())


def test_a_head_request_has_headers_and_no_body() -> None:
    async def test(client: aiohttp.ClientSession, front: Front, engine: StubEngine) -> None:
        async with client.head(front.url + "/docs") as answer:
            assert (answer.status, answer.headers["Content-Length"], await answer.read()) == (200, "11", b"")

    _drive(test)


@pytest.mark.parametrize(
    ("path", "api", "index"),
    [("/docs/_search", "_search", "docs"), ("/_search", "_search", None), ("/a,b*/_msearch", "_msearch", "a,b*"),
     ("/%3Clogs-%7Bnow%7D%3E/_search", "_search", "<logs-{now}>"), ("/_all/_search", "_search", "_all"),
     ("/docs/_async_search", "_async_search", "docs")],
)  # fmt: skip
def test_a_search_route_is_known_by_its_path(path: str, api: str, index: str | None) -> None:
    assert routes.match("POST", path) == routes.Route(api, index)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/docs/_search"), ("DELETE", "/_async_search/id"), ("GET", "/_async_search/id"), ("POST", "/docs/type/_search"),
     ("POST", "/_search/scroll"), ("GET", "/_render/_search"), ("POST", "//_search"), ("GET", "/")],
)  # fmt: skip
def test_anything_else_is_no_search_route(method: str, path: str) -> None:
    assert routes.match(method, path) is None
