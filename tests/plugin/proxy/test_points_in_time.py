"""Searches on a point in time name no index. The one on which it was opened through the proxy is remembered."""

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.engine import Engine
from querylift.plugin.expansion import Expansion
from querylift.plugin.pit_memory import KEEP_S, PitMemory
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.expanders import create_index, remove_indices
from tests.helpers.proxy_scenarios import BODY, JSON_HEADERS, run_with_proxy, send_search
from tests.helpers.upstream_stub import Handler, ReceivedRequest, RunningProxy, StubEngine, answer_with, run_proxy

OPENSEARCH_PATH = "/docs/_search/point_in_time?keep_alive=1m"
ELASTICSEARCH_PATH = "/docs/_pit?keep_alive=1m"


def _make_pit_body(pit_id: str) -> bytes:
    return json.dumps(BODY | {"pit": {"id": pit_id, "keep_alive": "1m"}}).encode()


def _answer_by_path(
    answers: dict[str, bytes], *, encode: Callable[[bytes], bytes] = bytes, extra: bytes = b""
) -> Handler:
    """Return a handler that gives the first answer whose text stands in the request's path."""

    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        path = request.start_line.decode()
        body = next(answer for part, answer in answers.items() if part in path)
        await answer_with(encode(body), extra=extra)(request, writer)

    return handle


async def _open_pit(client: aiohttp.ClientSession, proxy: RunningProxy, path: str) -> bytes:
    async with client.post(proxy.url + path, headers={"Accept-Encoding": "gzip"}) as answer:
        return await answer.read()


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (OPENSEARCH_PATH, b'{"pit_id":"p1","_shards":{"total":1}}'),
        (OPENSEARCH_PATH, b'{\n  "pit_id" : "p1",\n  "creation_time" : 1\n}'),
        (ELASTICSEARCH_PATH, b'{"id":"p1","_shards":{"total":1}}'),
    ],
)
@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_search_on_a_point_in_time_that_was_opened_through_us_is_expanded(
    path: str, answer: bytes, encoding: str
) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        opened = await _open_pit(client, proxy, path)
        assert (gzip.decompress(opened) if encoding else opened) == answer
        for pit_id, outcome in (("p1", "expanded"), ("p1", "cached"), ("other", "skipped;pit")):
            assert (await send_search(client, proxy, path="/_search", data=_make_pit_body(pit_id)))[1] == outcome

    answers = {"point_in_time": answer, "_pit": answer, "/_search": b'{"hits":{}}'}
    encode = gzip.compress if encoding else bytes
    run_with_proxy(
        check, _answer_by_path(answers, encode=encode, extra=b"Content-Encoding: gzip\r\n" if encoding else b"")
    )


def test_the_table_of_the_index_applies_on_which_it_was_opened() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await _open_pit(client, proxy, "/hidden%2Ctoo/_pit")
        assert (await send_search(client, proxy, path="/_search", data=_make_pit_body("p1")))[1] == "skipped;off"

    answers = {"_pit": b'{"id":"p1"}', "/_search": b"{}"}
    run_with_proxy(check, _answer_by_path(answers), index={"hidden": {"enabled": False}, "too": {"enabled": False}})


def test_an_answer_may_give_the_point_in_time_a_new_id() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await _open_pit(client, proxy, ELASTICSEARCH_PATH)
        for pit_id, outcome in (("p1", "expanded"), ("p2", "cached"), ("p1", "cached")):
            assert (await send_search(client, proxy, path="/_search", data=_make_pit_body(pit_id)))[1] == outcome

    answers = {"_pit": b'{"id":"p1"}', "/_search": b'{"pit_id":"p2","took":1,"hits":{}}'}
    run_with_proxy(check, _answer_by_path(answers))


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b'{"id":"p1"}', "403 Forbidden"),
        (b'{"error":{"id":"p1"}}', "200 OK"),
        (b" " * 70_000 + b'{"id":"p1"}', "200 OK"),
    ],
)
def test_an_answer_without_an_id_at_its_begin_is_passed_on_and_forgotten(answer: bytes, status: str) -> None:
    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        is_opening = b"_pit" in request.start_line
        await answer_with(answer, status=status if is_opening else "200 OK")(request, writer)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await _open_pit(client, proxy, ELASTICSEARCH_PATH) == answer
        assert (await send_search(client, proxy, path="/_search", data=_make_pit_body("p1")))[1] == "skipped;pit"

    run_with_proxy(check, handle)


def test_an_unknown_point_in_time_belongs_to_pit_index() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await send_search(client, proxy, path="/_search", data=_make_pit_body("p1")))[1] == "expanded"

    run_with_proxy(check, pit_index="docs")


def test_a_rejection_pauses_the_index_of_the_point_in_time() -> None:
    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        is_rewrite = b"urlopen" in request.body
        body = b'{"id":"p1"}' if b"_pit" in request.start_line else b"{}"
        await answer_with(body, status="400 Bad Request" if is_rewrite else "200 OK")(request, writer)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await _open_pit(client, proxy, ELASTICSEARCH_PATH)
        assert (await send_search(client, proxy, path="/_search", data=_make_pit_body("p1")))[0] == 200
        assert (await send_search(client, proxy))[1] == "skipped;paused"

    run_with_proxy(check, handle)


def test_the_memory_is_bounded_in_number_and_time() -> None:
    now_s = [0.0]
    memory = PitMemory(lambda: now_s[0], max_size=2)
    for pit_id in ("a", "b"):
        memory.remember_index(pit_id, f"index-of-{pit_id}")
    assert memory.find_index({"id": "a"}) == "index-of-a"
    memory.remember_index("c", "index-of-c")
    assert [memory.find_index({"id": pit_id}) for pit_id in "abc"] == ["index-of-a", None, "index-of-c"]
    now_s[0] = KEEP_S + 1
    assert memory.find_index({"id": "a"}) is None
    memory.remember_index("d", "x" * 1025)
    assert memory.find_index({"id": "d"}) is None


@pytest.mark.parametrize("pit", [None, "a", 7, [], {}, {"id": None}, {"id": 7}, {"id": {"id": "a"}}, {"id": "\ud800"}])
def test_a_search_with_an_odd_point_in_time_has_no_remembered_index(pit: object) -> None:
    memory = PitMemory(lambda: 0.0)
    memory.remember_index("a", "docs")
    assert memory.find_index(pit) is None


@pytest.mark.engine
def test_every_page_of_a_point_in_time_is_expanded_on_the_engine(opensearch: str) -> None:
    index = "pit-docs"
    with Engine(parse_settings({"engine": opensearch})) as engine:
        remove_indices(engine, index)
        create_index(engine, index, {"text": {"type": "text"}})
        for i in range(6):
            engine.call("PUT", f"/{index}/_doc/{i}", {"text": f"download a page {'urlopen' if i % 2 else 'other'}"})
        engine.call("POST", f"/{index}/_refresh")
    generator = ScriptedGenerator({"download a page": Expansion(text="urlopen fetches")})

    async def main() -> tuple[list[str], list[str]]:
        outcomes, ids = [], []
        async with run_proxy(opensearch, generator, index={index: {}}) as proxy, aiohttp.ClientSession() as client:
            path = f"/{index}/_search/point_in_time?keep_alive=1m"
            pit_id = json.loads(await _open_pit(client, proxy, path))["pit_id"]
            body: dict[str, Any] = BODY | {"size": 2, "sort": ["_score", "_doc"], "pit": {"id": pit_id}}
            for _ in range(3):
                async with client.post(proxy.url + "/_search", json=body, headers=JSON_HEADERS) as answer:
                    outcomes.append(answer.headers["X-Querylift"])
                    hits = (await answer.json())["hits"]["hits"]
                ids += [hit["_id"] for hit in hits]
                body["search_after"] = hits[-1]["sort"]
        return outcomes, ids

    outcomes, ids = asyncio.run(main())
    assert outcomes == ["expanded", "cached", "cached"]
    assert set(ids[:3]) == {"1", "3", "5"}  # without the expansion all have the same score
    assert sorted(ids) == ["0", "1", "2", "3", "4", "5"]
