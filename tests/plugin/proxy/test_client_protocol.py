"""What clients may send on their connection, byte for byte."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from querylift.plugin.proxy.client_protocol import MAX_HEAD_BYTES, MAX_HEADERS
from tests.helpers.proxy_scenarios import RAW_BODY, run_with_proxy
from tests.helpers.raw_client import connect_raw, exchange_raw
from tests.helpers.upstream_stub import Handler, ReceivedRequest, RunningProxy, StubEngine, answer_with

SEARCH = b"POST /docs/_search HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(RAW_BODY),
    RAW_BODY,
)


def _run_raw(check: Callable[[RunningProxy, StubEngine], Awaitable[None]], handler: Handler | None = None) -> None:
    async def check_without_client(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await check(proxy, engine)

    run_with_proxy(check_without_client, handler)


@pytest.mark.parametrize("cut", [3, 9, 10, 22, 39, 41, 43, 50])
def test_raw_utf_8_in_a_request_line_reaches_the_engine_as_the_characters_that_engines_read(cut: int) -> None:
    request = "GET /café/_search?q=text:café HTTP/1.1\r\nX-Opaque-Id: café\r\nHost: h\r\n\r\n".encode()

    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await exchange_raw(proxy.port, request[:cut], request[cut:])
        assert answer.status == 200
        line = b"GET /caf%C3%83%C2%A9/_search?q=text:caf%C3%83%C2%A9 HTTP/1.1"
        assert engine.requests[0].start_line == line
        assert engine.requests[0].get_header_values(b"x-opaque-id") == ["café".encode()]

    _run_raw(check)


def test_utf_8_in_a_header_comes_back_from_the_engine_as_it_was_sent() -> None:
    async def echo(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        value = request.get_header_values(b"x-opaque-id")[0]
        await answer_with(extra=b"X-Opaque-Id: " + value + b"\r\n")(request, writer)

    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await exchange_raw(proxy.port, "GET / HTTP/1.1\r\nHost: h\r\nX-Opaque-Id: ünï\r\n\r\n".encode())
        assert "x-opaque-id: ünï\r\n".encode() in answer.head

    _run_raw(check, echo)


def test_spaces_after_a_header_value_are_no_part_of_it() -> None:
    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        request = b"POST /_bulk HTTP/1.1\r\nHost: h\r\nContent-Length: 5 \t\r\n\r\nhello"
        assert (await exchange_raw(proxy.port, request)).status == 200
        assert engine.requests[0].body == b"hello"

    _run_raw(check)


LARGE_HEADS = {
    "one long value": b"GET / HTTP/1.1\r\nX-A: " + b"a" * (MAX_HEAD_BYTES + 1),
    "a long request line": b"GET /?" + b"a" * (MAX_HEAD_BYTES + 1),
    "a long name": b"GET / HTTP/1.1\r\n" + b"x" * (MAX_HEAD_BYTES + 1),
    "many values": b"GET / HTTP/1.1\r\n" + b"X-A: %s\r\n" % (b"a" * 1000) * 40,
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * (MAX_HEADERS + 2),
}


@pytest.mark.parametrize("head", LARGE_HEADS.values(), ids=LARGE_HEADS.keys())
def test_a_head_over_the_limit_is_refused_before_it_ends(head: bytes) -> None:
    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as client:
            await client.send_segments([head])
            answer = await client.read_answer()
            assert answer is not None and answer.status == 431
            assert b"connection: close" in answer.head
            assert "send" in json.loads(answer.body)["error"]["reason"]
            client.close_sending_half()
            assert await client.is_closed_by_server()
        assert engine.requests == []

    _run_raw(check)


def test_a_head_just_under_the_limit_goes_to_the_engine_which_is_the_judge_of_it() -> None:
    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        request = b"GET / HTTP/1.1\r\nHost: h\r\nX-A: " + b"a" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n"
        assert (await exchange_raw(proxy.port, request)).status == 200

    _run_raw(check)


def test_a_body_in_thousands_of_tiny_chunks_is_refused_and_one_in_small_chunks_is_not() -> None:
    head = b"POST /docs/_bulk HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await exchange_raw(proxy.port, head + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n")
        assert answer.status == 400
        assert b"send larger ones" in answer.body
        assert engine.requests == []
        for body in (b"1\r\na\r\n" * 900, b"9\r\n123456789\r\n" * 5000):
            assert (await exchange_raw(proxy.port, head + body + b"0\r\n\r\n")).status == 200

    _run_raw(check)


def test_nonsense_after_a_request_does_not_take_its_answer_away() -> None:
    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as client:
            await client.send_segments([SEARCH + b"nonsense\r\n\r\n"])
            answer = await client.read_answer()
            assert answer is not None and (answer.status, answer.body) == (200, b'{"hits":{}}')
            assert await client.is_closed_by_server()
        assert len(engine.requests) == 1

    _run_raw(check)


def test_a_client_that_closes_its_sending_half_gets_its_answer() -> None:
    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as client:
            await client.send_segments([SEARCH + SEARCH])
            client.close_sending_half()
            for _ in range(2):
                answer = await client.read_answer()
                assert answer is not None and answer.body == b'{"hits":{}}'
            assert await client.is_closed_by_server()

    async def answer_late(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        await answer_with()(request, writer)

    _run_raw(check, answer_late)


@pytest.mark.parametrize("size", [20, len(SEARCH) - 1])
def test_a_request_that_ends_early_never_reaches_the_engine_as_a_whole_one(size: int) -> None:
    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as client:
            await client.send_segments([SEARCH[:size]])
            client.close_sending_half()
            assert await client.is_closed_by_server()
        assert engine.requests == []

    _run_raw(check)


def test_an_expectation_goes_to_the_engine_before_the_body_does() -> None:
    head = b"POST /_bulk HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 200000000\r\n\r\n"

    async def refuse(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Request Entity Too Large\r\ncontent-length: 0\r\n\r\n")

    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as client:
            await client.send_segments([head])
            answer = await client.read_answer()
            assert answer is not None and answer.status == 413
            assert await client.is_closed_by_server()  # it may send the body, or a request in its place
        assert engine.requests[0].get_header_values(b"expect") == [b"100-continue"]

    _run_raw(check, refuse)


def test_a_body_that_the_engine_wants_is_asked_for_and_forwarded() -> None:
    async def check(proxy: RunningProxy, engine: StubEngine) -> None:
        async with connect_raw(proxy.port) as client:
            await client.send_segments(
                [b"POST /_bulk HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"]
            )
            answer = await client.read_answer()
            assert answer is not None and answer.status == 100
            await client.send_segments([b"hello"])
            answer = await client.read_answer()
            assert answer is not None and answer.status == 200
        assert engine.requests[0].body == b"hello"

    _run_raw(check)


def test_a_search_larger_than_the_limit_is_not_read_whether_it_comes_in_one_piece_or_is_announced() -> None:
    body = b'{"query":{"match":{"text":"download a page"}}}'
    chunked = b"POST /docs/_search HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    announced = (
        b"POST /docs/_search HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    requests = [chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), announced % len(body) + body]

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for request in requests:
            answer = await exchange_raw(proxy.port, request)
            assert b"x-querylift: skipped;too-large" in answer.head
            assert engine.requests[-1].body == body

    run_with_proxy(check, max_body_bytes=len(body) - 1)
