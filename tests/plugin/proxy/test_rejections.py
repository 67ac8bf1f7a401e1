"""An engine that rejects a rewrite gets the original search, and the client gets its answer."""

import asyncio
import gzip
import json

import aiohttp
import pytest

from tests.helpers.proxy_scenarios import RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import Handler, ReceivedRequest, RunningProxy, StubEngine, answer_with


def _reject_rewrites(status: str) -> Handler:
    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        is_rewrite = b"urlopen" in request.body
        await answer_with(
            b'{"error":"too_many_clauses"}' if is_rewrite else b"{}", status=status if is_rewrite else "200 OK"
        )(request, writer)

    return handle


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error"])
def test_the_original_search_is_sent_when_the_engine_rejects_its_rewrite(status: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await send_search(client, proxy) == (200, "error;rejected", b"{}")
        assert [b"urlopen" in request.body for request in engine.requests] == [True, False]
        assert (await send_search(client, proxy))[1] == "skipped;paused"

    run_with_proxy(check, _reject_rewrites(status))


def test_a_search_that_is_itself_wrong_does_not_pause_its_index() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for _ in range(2):
            assert (await send_search(client, proxy))[:2] == (400, "error;rejected")

    run_with_proxy(check, answer_with(b"{}", status="400 Bad Request"))


def test_an_msearch_is_sent_once_when_only_an_unexpanded_search_is_wrong() -> None:
    answers = b'{"responses":[{"status":200},{"error":{},"status":400}]}'

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        lines = b'{"index":"docs"}\n' + RAW_BODY + b'\n{"index":"other"}\n{}\n'
        assert await send_search(client, proxy, path="/_msearch", data=lines) == (200, "expanded", answers)
        assert len(engine.requests) == 1

    run_with_proxy(check, answer_with(answers))


def test_an_overloaded_engine_is_not_asked_twice() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy))[:2] == (429, "expanded")
        assert len(engine.requests) == 1

    run_with_proxy(check, _reject_rewrites("429 Too Many Requests"))


def test_the_original_msearch_is_sent_when_the_engine_rejects_one_rewrite_in_it() -> None:
    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        answer = b'{"error":{},"status":400}' if b"urlopen" in request.body else b'{"status":200}'
        await answer_with(b'{"responses":[' + answer + b"]}")(request, writer)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await send_search(client, proxy, path="/_msearch", data=b'{"index":"docs"}\n' + RAW_BODY + b"\n")
        assert answer == (200, "error;rejected", b'{"responses":[{"status":200}]}')

    run_with_proxy(check, handle)


@pytest.mark.parametrize("form", ["gzip", "pretty"])
def test_a_rejection_is_found_in_every_form_of_answer_that_a_client_may_ask_for(form: str) -> None:
    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        answer = {"error": {}, "status": 400} if b"urlopen" in request.body else {"status": 200}
        body = json.dumps({"responses": [answer]}, indent=2).encode()
        extra = b"content-encoding: gzip\r\n" if form == "gzip" else b""
        await answer_with(gzip.compress(body) if form == "gzip" else body, extra=extra)(request, writer)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await send_search(client, proxy, path="/_msearch", data=b'{"index":"docs"}\n' + RAW_BODY + b"\n")
        assert answer[:2] == (200, "error;rejected")
        assert (await send_search(client, proxy))[1] == "skipped;paused"

    run_with_proxy(check, handle)


@pytest.mark.parametrize("query", ["?filter_path=responses.hits.hits._id", "?format=yaml"])
def test_an_msearch_is_not_expanded_when_its_answer_would_hide_a_rejection(query: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        lines = b'{"index":"docs"}\n' + RAW_BODY + b"\n"
        assert (await send_search(client, proxy, path="/_msearch" + query, data=lines))[1] == "skipped;unseen"
        assert engine.requests[0].body == lines

    run_with_proxy(check)


def test_the_original_search_is_sent_when_a_shard_fails_on_the_rewrite() -> None:
    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        failed_shards = b"1" if b"urlopen" in request.body else b"0"
        await answer_with(b'{"took":1,"_shards":{"total":2,"failed":' + failed_shards + b'},"hits":{}}')(
            request, writer
        )

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        status, outcome, body = await send_search(client, proxy)
        assert (status, outcome, b'"failed":0' in body) == (200, "error;rejected", True)

    run_with_proxy(check, handle)


def test_a_document_with_a_field_status_400_is_not_a_rejection() -> None:
    hits = b'{"responses":[{"hits":{"hits":[{"_source":{"status":400}}]},"status":200}]}'

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await send_search(client, proxy, path="/_msearch", data=b'{"index":"docs"}\n' + RAW_BODY + b"\n")
        assert answer == (200, "expanded", hits)
        assert len(engine.requests) == 1

    run_with_proxy(check, answer_with(hits))
