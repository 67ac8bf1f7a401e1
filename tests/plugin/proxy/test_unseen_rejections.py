"""A search is expanded only where it can be seen whether a shard refused the rewrite."""

import asyncio
import gzip
import json
import zlib

import aiohttp
import pytest

from querylift.plugin.proxy.rejection import MAX_HELD_BYTES
from querylift.plugin.proxy.shard_report import ShardReport
from tests.helpers.proxy_scenarios import JSON_HEADERS, RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import Handler, ReceivedRequest, RunningProxy, StubEngine, answer_with

HIDING_REQUESTS = {
    "filter_path": ("/docs/_search?filter_path=hits.total", {}),
    "filter_path with an escaped name": ("/docs/_search?%66ilter_path=hits.total", {}),
    "filter_path without _shards": ("/docs/_search?filter_path=-_shards", {}),
    "filter_path without anything by star": ("/docs/_search?filter_path=*,-_sh*", {}),
    "format yaml": ("/docs/_search?format=yaml", {}),
    "format cbor": ("/docs/_search?pretty&format=CBOR", {}),
    "Accept yaml": ("/docs/_search", {"Accept": "application/yaml"}),
    "Accept cbor": ("/docs/_search", {"Accept": "application/vnd.elasticsearch+cbor;compatible-with=9"}),
    "Accept smile": ("/docs/_search", {"Accept": "application/smile, */*"}),
    "asynchronous": ("/docs/_async_search", {}),
}


@pytest.mark.parametrize(("path", "headers"), HIDING_REQUESTS.values(), ids=HIDING_REQUESTS.keys())
def test_a_search_is_not_expanded_when_its_answer_would_hide_a_failed_shard(path: str, headers: dict[str, str]) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        answer = await send_search(client, proxy, path=path, headers=JSON_HEADERS | headers)
        assert answer[1] == "skipped;unseen"
        assert engine.requests[0].body == RAW_BODY

    run_with_proxy(check)


@pytest.mark.parametrize(
    "path",
    [
        "?filter_path=_shards,hits.total",
        "?filter_path=hits,_shards.failed",
        "?filter_path=-hits.hits.sort",
        "?filter_path=",
        "?filter_path=*",
        "?format=json",
        "?pretty",
    ],
)
def test_a_search_is_expanded_when_its_answer_shows_the_shards(path: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy, path="/docs/_search" + path))[1] == "expanded"

    run_with_proxy(check)


ACCEPTED_ENCODINGS = [
    ("gzip", [b"gzip"]),
    ("gzip, deflate, br, zstd", [b"gzip"]),
    ("deflate;q=0.5, GZIP;q=0.8", [b"gzip"]),
    ("*", [b"gzip"]),
    ("deflate", []),
    ("snappy, br", []),
    ("gzip;q=0, deflate", []),
]


@pytest.mark.parametrize(("accepted", "forwarded"), ACCEPTED_ENCODINGS)
def test_the_engine_is_asked_for_an_encoding_in_which_a_failed_shard_can_be_seen(
    accepted: str, forwarded: list[bytes]
) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        headers = JSON_HEADERS | {"Accept-Encoding": accepted}
        assert (await send_search(client, proxy, headers=headers))[1] == "expanded"
        assert engine.requests[0].get_header_values(b"accept-encoding") == forwarded
        await send_search(client, proxy, headers=headers | {"X-Querylift": "off"})
        assert engine.requests[1].get_header_values(b"accept-encoding") == [accepted.encode()]

    run_with_proxy(check)


def _answer_rewrites_with(body: bytes, extra: bytes = b"") -> Handler:
    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        is_rewrite = b"urlopen" in request.body
        await answer_with(body if is_rewrite else b"{}", extra=extra if is_rewrite else b"")(request, writer)

    return handle


UNREADABLE_ANSWERS = {
    "yaml": (b"---\ntook: 1\n", b"content-type: application/yaml\r\n"),
    "deflate": (zlib.compress(b"{}"), b"content-type: application/json\r\ncontent-encoding: deflate\r\n"),
}


@pytest.mark.parametrize(("body", "extra"), UNREADABLE_ANSWERS.values(), ids=UNREADABLE_ANSWERS.keys())
def test_the_original_search_is_sent_when_the_engine_answers_in_another_form(body: bytes, extra: bytes) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for _ in range(2):  # the index is not paused
            assert await send_search(client, proxy) == (200, "skipped;unseen", b"{}")
        assert [b"urlopen" in request.body for request in engine.requests] == [True, False] * 2

    run_with_proxy(check, _answer_rewrites_with(body, extra))


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_failed_shard_is_found_behind_a_long_scroll_id_and_many_shards(encoding: str) -> None:
    scroll_id = "DXF1ZXJ5QW5kRmV0Y2gB" * 20_000
    answer = {"_scroll_id": scroll_id, "took": 1, "_shards": {"total": 900, "successful": 899, "failed": 1}, "hits": {}}
    body = json.dumps(answer, indent=1).encode()
    extra = b"content-type: application/json\r\n"
    if encoding == "gzip":
        body, extra = gzip.compress(body), extra + b"content-encoding: gzip\r\n"

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await send_search(client, proxy) == (200, "error;rejected", b"{}")

    run_with_proxy(check, _answer_rewrites_with(body, extra))


def test_the_original_msearch_is_sent_when_the_answer_is_too_long_to_be_read() -> None:
    body = b'{"responses":[{"x":"' + b"y" * 2 * MAX_HELD_BYTES + b'"}]}'

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        lines = b'{"index":"docs"}\n' + RAW_BODY + b"\n"
        assert await send_search(client, proxy, path="/_msearch", data=lines) == (200, "skipped;unseen", b"{}")

    run_with_proxy(check, _answer_rewrites_with(body))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_report_of_the_shards_is_read_wherever_the_answer_is_cut(size: int) -> None:
    for failed_count in (0, 1, 12):
        text = b'{"_scroll_id":"x_shards","_shards" : {"total":2,\n"failed": %d},"hits":{"_shards":{"failed":9}}}'
        report = ShardReport(b"")
        answer = text % failed_count
        parts = [answer[start : start + size] for start in range(0, len(answer), size)]
        assert any([report.add_bytes(part) for part in parts])
        assert report.has_failed_shard == (failed_count > 0)
