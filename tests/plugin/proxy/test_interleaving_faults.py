"""Two searches are sent. When one of them fails, is late or cannot be merged, the other answers as the engine gave it."""

import asyncio
import json
import logging
import time
from typing import Any

import aiohttp
import pytest

from querylift.plugin.proxy.journal import SEARCH_LOGGER
from tests.helpers.proxy_scenarios import JSON_HEADERS, RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import Handler, ReceivedRequest, RunningProxy, StubEngine, answer_with

INTERLEAVED: dict[str, Any] = {"index": {"docs": {"interleave": True}}, "budget_ms": 300}
SHARDS = '"_shards":{"total":1,"successful":1,"skipped":0,"failed":0}'


def _answer_hits(*ids: str, shards: str = SHARDS, before: str = "") -> bytes:
    hits = ", ".join(f'{{"_index":"docs","_id":"{name}","_score":1.50,"_source":{{"n":1e2}}}}' for name in ids)
    return f'{{"took":1,"timed_out":false,{before}{shards},"hits":{{"max_score":1.50,"hits":[ {hits} ]}}}}'.encode()


ORIGINAL, EXPANDED = _answer_hits("a", "b", "c"), _answer_hits("c", "d", "a")
JSON_TYPE = b"content-type: application/json\r\n"


def _answer_both(
    original: Handler | None, expanded: Handler | None, *, original_s: float = 0, expanded_s: float = 0
) -> Handler:
    """Return a handler for either search, each with its delay. None closes the connection."""

    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        is_expanded = b"urlopen" in request.body
        await asyncio.sleep(expanded_s if is_expanded else original_s)
        handler = expanded if is_expanded else original
        if handler is None:
            writer.close()
            return
        await handler(request, writer)

    return handle


def _answer_json(body: bytes, status: str = "200 OK") -> Handler:
    return answer_with(body, status=status, extra=JSON_TYPE)


def _search_once(handler: Handler, **settings: Any) -> tuple[int, str, str, bytes, int]:
    """Return status, outcome, teams and body of the answer, and how many requests the engine got."""
    answers = []

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.post(f"{proxy.url}/docs/_search", data=RAW_BODY, headers=JSON_HEADERS) as answer:
            headers = answer.headers
            teams = headers.get("X-Querylift-Teams", "")
            answers.append((answer.status, headers["X-Querylift"], teams, await answer.read(), len(engine.requests)))

    run_with_proxy(check, handler, **(INTERLEAVED | settings))
    return answers[0]


def test_the_hits_of_both_answers_come_in_turns_and_byte_for_byte(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, SEARCH_LOGGER)
    handler = _answer_both(_answer_json(ORIGINAL), _answer_json(EXPANDED))
    status, outcome, teams, body, requests = _search_once(handler, log={"searches": True})
    assert (status, outcome, requests) == (200, "expanded;interleaved", 2)
    ids = [hit["_id"] for hit in json.loads(body)["hits"]["hits"]]
    drafts = {"oeo": ["a", "c", "b"], "oee": ["a", "c", "d"], "eoo": ["c", "a", "b"], "eoe": ["c", "a", "d"]}
    assert ids == drafts[teams]
    hit = b'{"_index":"docs","_id":"%s","_score":1.50,"_source":{"n":1e2}}'
    hits = b",".join(hit % name.encode() for name in ids)
    assert body == ORIGINAL.partition(b"[ ")[0] + b"[ " + hits + b" ]}}"
    record = json.loads(caplog.records[-1].getMessage())
    assert record["query_response_hit_ids"] == ids
    assert record["query_attributes"]["teams"] == teams
    assert record["query_attributes"]["variant"] == "interleaved"


def test_the_same_user_gets_the_same_list_again() -> None:
    handler = _answer_both(_answer_json(ORIGINAL), _answer_json(EXPANDED))
    assert len({_search_once(handler)[3] for _ in range(3)}) == 1


@pytest.mark.parametrize(
    ("expanded", "outcome"),
    [
        (None, "error;alone"),
        (_answer_json(b"{}", "429 Too Many Requests"), "error;alone"),
        (_answer_json(b"{}", "503 Service Unavailable"), "error;alone"),
        (_answer_json(b"{}", "400 Bad Request"), "error;rejected"),
        (_answer_json(_answer_hits("c", shards='"_shards":{"total":2,"failed":1}')), "error;rejected"),
        (_answer_json(b'{"timed_out":false'), "error;alone"),
        (_answer_json(b"[]"), "error;alone"),
        (_answer_json(_answer_hits("c", "c")), "error;alone"),
        (_answer_json(_answer_hits("c").replace(b'"_id":"c",', b"")), "error;alone"),
        (_answer_json(_answer_hits("c").replace(b"false", b"true", 1)), "error;alone"),
        (_answer_json(_answer_hits("c", before='"x":"%s",' % ("x" * 1_100_000))), "error;alone"),
        (answer_with(EXPANDED, extra=b"content-type: application/yaml\r\n"), "error;alone"),
        (answer_with(EXPANDED, extra=JSON_TYPE + b"content-encoding: br\r\n"), "error;alone"),
        (answer_with(EXPANDED, extra=JSON_TYPE + b"content-encoding: gzip\r\n"), "error;alone"),
    ],
)
def test_the_original_answers_alone_when_the_expanded_search_has_no_usable_answer(
    expanded: Handler | None, outcome: str
) -> None:
    answer = _search_once(_answer_both(_answer_json(ORIGINAL), expanded))
    assert answer[:4] == (200, outcome, "", ORIGINAL)


@pytest.mark.parametrize(
    "original",
    [
        _answer_hits("a", "a"),
        _answer_hits("a", shards='"_shards":{"total":2,"failed":1}'),
        _answer_hits("a").replace(b"false", b"true", 1),
        b"not JSON",
        _answer_hits("a", before='"x":"%s",' % ("x" * 5_000_000)),
        b"",
    ],
)
def test_an_original_answer_that_cannot_be_merged_goes_out_as_it_is(original: bytes) -> None:
    status, outcome, _, body, _ = _search_once(_answer_both(_answer_json(original), _answer_json(EXPANDED)))
    assert (status, outcome, body == original) == (200, "error;alone", True)


@pytest.mark.parametrize(
    "original",
    [None, _answer_json(b"{}", "429 Too Many Requests"), _answer_json(b"{}", "503 Service Unavailable")],
)
def test_the_expanded_search_answers_alone_when_the_engine_had_no_time_for_the_original(
    original: Handler | None,
) -> None:
    answer = _search_once(_answer_both(original, _answer_json(EXPANDED)))
    assert answer[:4] == (200, "expanded;alone", "", EXPANDED)


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "404 Not Found"])
def test_an_error_of_the_clients_own_search_is_the_answer(status: str) -> None:
    answers = []

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        async with client.post(f"{proxy.url}/docs/_search", data=RAW_BODY, headers=JSON_HEADERS) as answer:
            answers.append((answer.status, answer.headers.get("X-Querylift"), await answer.read()))

    run_with_proxy(check, _answer_both(_answer_json(b'{"error":1}', status), _answer_json(EXPANDED)), **INTERLEAVED)
    expected_outcome = None if status.startswith("401") else "skipped;original-fails"
    assert answers == [(int(status[:3]), expected_outcome, b'{"error":1}')]


def test_without_any_answer_the_client_is_told_that_the_engine_is_down() -> None:
    status, outcome, _, body, _ = _search_once(_answer_both(None, None))
    assert (status, outcome) == (502, "error;engine")
    assert json.loads(body)["error"]["type"] == "querylift_engine_unreachable"


@pytest.mark.parametrize(
    ("late", "outcome", "body"),
    [("expanded", "late;alone", ORIGINAL), ("original", "expanded;alone", EXPANDED)],
)
def test_the_slower_search_is_waited_for_no_longer_than_the_budget(late: str, outcome: str, body: bytes) -> None:
    delays = {f"{late}_s": 10.0}
    started_s = time.monotonic()
    answer = _search_once(_answer_both(_answer_json(ORIGINAL), _answer_json(EXPANDED), **delays))
    assert answer[:4] == (200, outcome, "", body)
    assert time.monotonic() - started_s < 8


def test_a_slow_engine_is_waited_for_when_neither_search_has_an_answer() -> None:
    handler = _answer_both(_answer_json(ORIGINAL), _answer_json(EXPANDED), original_s=0.6, expanded_s=0.6)
    assert _search_once(handler, budget_ms=300)[1] == "expanded;interleaved"


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/docs/_search?from=10", {}),
        ("/docs/_search?filter_path=_shards,hits", {}),
        ("/docs/_search?search_pipeline=p", {}),
        ("/docs/_search", {"from": 10}),
        ("/docs/_search", {"size": 1000}),
        ("/docs/_search", {"collapse": {"field": "brand"}}),
        ("/docs/_msearch", {}),
    ],
)
def test_other_searches_are_served_as_expanded(path: str, keys: dict[str, object]) -> None:
    body = json.dumps(json.loads(RAW_BODY) | keys).encode()

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        data = b"{}\n" + body + b"\n" if "_msearch" in path else body
        async with client.post(proxy.url + path, data=data, headers=JSON_HEADERS) as answer:
            assert (answer.headers["X-Querylift"], len(engine.requests)) == ("expanded", 1)

    run_with_proxy(check, _answer_json(ORIGINAL), **INTERLEAVED)


def test_a_rejected_rewrite_pauses_its_index() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for outcome in ("error;rejected", "skipped;paused"):
            async with client.post(f"{proxy.url}/docs/_search", data=RAW_BODY, headers=JSON_HEADERS) as answer:
                assert (answer.status, answer.headers["X-Querylift"]) == (200, outcome)

    handler = _answer_both(_answer_json(ORIGINAL), _answer_json(b"{}", "400 Bad Request"))
    run_with_proxy(check, handler, **INTERLEAVED)


def test_both_searches_are_given_up_when_the_client_leaves() -> None:
    async def never_answer(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        with pytest.raises(TimeoutError):
            await send_search(client, proxy, timeout=aiohttp.ClientTimeout(total=0.3))
        async with asyncio.timeout(5):
            while engine.hung_up_count < 2:
                await asyncio.sleep(0.01)

    run_with_proxy(check, never_answer, **INTERLEAVED)
