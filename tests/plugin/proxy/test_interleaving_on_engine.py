"""Interleaved answers of a real engine hold its own hits, unchanged, in a valid team draft."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.engine import Engine, make_index_action
from querylift.plugin.expansion import Expansion
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.upstream_stub import RunningProxy, run_proxy

pytestmark = pytest.mark.engine
INDEX = "interleaved"
NUMBERS = '{"big": 123456789012345678901234567890, "exact": 0.10000000000000000555, "small": 1e-400, "text": '
"""Values that Python's floats cannot hold."""
BODY: dict[str, Any] = {"query": {"match": {"text": "compress"}}, "size": 5}
WORDS = ("zip", "gzip", "archive", "folder", "tar", "bzip")
Check = Callable[[aiohttp.ClientSession, RunningProxy, str], Awaitable[None]]


@pytest.fixture(scope="module")
def engine_url(opensearch: str) -> Iterator[str]:
    """An index of 12 documents that all have the word, and in which later ones have more words of the expansion."""
    with Engine(parse_settings({"engine": opensearch})) as engine:
        if engine.has_index(INDEX):
            engine.call("DELETE", f"/{INDEX}")
        mappings = {"dynamic": False, "properties": {"text": {"type": "text"}, "brand": {"type": "keyword"}}}
        settings = {"number_of_replicas": 0, "number_of_shards": 1}
        engine.call("PUT", f"/{INDEX}", {"settings": settings, "mappings": mappings})
        texts = ["compress " * (12 - i) + " ".join(WORDS[: i // 2]) + " filler" * i for i in range(12)]
        actions = (make_index_action(INDEX, f"d{i}", {"text": text, "brand": "a"}) for i, text in enumerate(texts))
        assert all(ok for ok, _ in engine.send_bulk_actions(actions))
        engine.call("POST", f"/{INDEX}/_refresh")
        yield opensearch
        engine.call("DELETE", f"/{INDEX}")


def _run_check(engine_url: str, check: Check, **table: object) -> None:
    async def main() -> None:
        generator = ScriptedGenerator({"compress": Expansion(text=" ".join(WORDS))})
        settings: Any = {"index": {INDEX: {"interleave": True, "weight": 1.0} | table}, "budget_ms": 5000}
        async with run_proxy(engine_url, generator, **settings) as proxy, aiohttp.ClientSession() as client:
            async with asyncio.timeout(60):
                await check(client, proxy, engine_url)

    asyncio.run(main())


async def _search(
    client: aiohttp.ClientSession, url: str, body: Any = BODY, *, user: str = "", path: str = "_search", **headers: str
) -> tuple[Any, Any]:
    """Return the headers and the JSON of an answer, without the time that it took."""
    all_headers = {"Content-Type": "application/json", "X-Opaque-Id": user} | headers
    async with client.post(f"{url}/{INDEX}/{path}", data=json.dumps(body), headers=all_headers) as answer:
        answer.raise_for_status()
        values = json.loads(await answer.text(), parse_float=str, parse_int=str)
        values.pop("took")
        return answer.headers, values


def _split_teams(teams: str, ids: list[str], original: list[str], expanded: list[str]) -> None:
    """Assert that every hit is the best of its team's list that was left."""
    for i, (team, hit_id) in enumerate(zip(teams, ids, strict=True)):
        ranked = expanded if team == "e" else original
        assert hit_id == next(name for name in ranked if name not in ids[:i])
    drafted = teams.lstrip("=")
    assert all(abs(drafted[:n].count("o") - drafted[:n].count("e")) <= 1 for n in range(len(drafted)))


@pytest.mark.parametrize("mode", ["boost", "widen"])
def test_the_hits_are_a_team_draft_of_the_two_lists_and_are_the_engines_own(engine_url: str, mode: str) -> None:
    body = BODY | {
        "highlight": {"fields": {"text": {"number_of_fragments": 1}}},
        "aggs": {"brands": {"terms": {"field": "brand"}}},
        "track_total_hits": True,
    }

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: str) -> None:
        _, original = await _search(client, engine, body)
        _, expanded = await _search(client, proxy.url, body, path="_search?search_type=query_then_fetch")
        lists = [[hit["_id"] for hit in answer["hits"]["hits"]] for answer in (original, expanded)]
        assert lists[0] != lists[1]
        hits = {("o", hit["_id"]): hit for hit in original["hits"]["hits"]}
        hits |= {("=", hit["_id"]): hit for hit in original["hits"]["hits"]}
        hits |= {("e", hit["_id"]): hit for hit in expanded["hits"]["hits"]}
        all_teams = set()
        for i in range(12):
            headers, answer = await _search(client, proxy.url, body, user=f"user {i}")
            assert headers["X-Querylift"] == "cached;interleaved"
            teams, ids = headers["X-Querylift-Teams"], [hit["_id"] for hit in answer["hits"]["hits"]]
            _split_teams(teams, ids, *lists)
            assert answer["hits"]["hits"] == [hits[team, name] for team, name in zip(teams, ids, strict=True)]
            assert all(hit["highlight"] for hit in answer["hits"]["hits"])
            for part in (answer, original):
                part["hits"] = part["hits"] | {"hits": []}
            assert answer == original  # total, greatest score and aggregations are those of the original search
            original = (await _search(client, engine, body))[1]
            all_teams.add(teams)
        assert len(all_teams) > 1

    _run_check(engine_url, check, mode=mode)


def test_numbers_stay_digit_for_digit(engine_url: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: str) -> None:
        for i in range(2):
            source = NUMBERS + json.dumps("compress compress gzip" + " x" * i) + "}"
            url = f"{engine}/{INDEX}/_doc/n{i}?refresh=true"
            async with client.put(url, data=source, headers={"Content-Type": "application/json"}) as answer:
                assert answer.status == 201
        headers = {"Content-Type": "application/json"}
        try:
            body = json.dumps(BODY | {"size": 14})
            async with client.post(f"{proxy.url}/{INDEX}/_search", data=body, headers=headers) as answer:
                text = await answer.text()
                assert answer.headers["X-Querylift"] == "expanded;interleaved"
            assert text.count(NUMBERS) == 2
        finally:
            for i in range(2):
                await client.delete(f"{engine}/{INDEX}/_doc/n{i}?refresh=true")

    _run_check(engine_url, check)


@pytest.mark.parametrize("encoding", ["gzip", "identity", "deflate, gzip;q=0.5", "br"])
def test_the_answer_is_gzip_where_the_client_takes_it(engine_url: str, encoding: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: str) -> None:
        headers, answer = await _search(client, proxy.url, **{"Accept-Encoding": encoding})
        assert headers["X-Querylift"] == "expanded;interleaved"
        assert headers.get("Content-Encoding", "") == ("gzip" if "gzip" in encoding else "")
        assert len(answer["hits"]["hits"]) == 5

    _run_check(engine_url, check)


def test_a_pretty_answer_and_a_total_as_a_number_stay_so(engine_url: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: str) -> None:
        headers, answer = await _search(client, proxy.url, path="_search?pretty&rest_total_hits_as_int=true&size=3")
        assert headers["X-Querylift"] == "expanded;interleaved"
        assert (answer["hits"]["total"], len(answer["hits"]["hits"])) == ("12", 3)

    _run_check(engine_url, check)


def test_a_search_without_hits_is_answered(engine_url: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: str) -> None:
        body = BODY | {"post_filter": {"term": {"brand": "none"}}}
        headers, answer = await _search(client, proxy.url, body)
        assert (headers["X-Querylift"], headers["X-Querylift-Teams"]) == ("expanded;interleaved", "")
        assert answer == (await _search(client, engine, body))[1]

    _run_check(engine_url, check)


def test_the_control_group_is_not_interleaved(engine_url: str) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: str) -> None:
        outcomes = set()
        for i in range(20):
            headers, _ = await _search(client, proxy.url, user=f"user {i}")
            assert ("X-Querylift-Teams" in headers) == ("interleaved" in headers["X-Querylift"])
            outcomes.add(headers["X-Querylift"].partition(";")[2])
        assert outcomes == {"control", "interleaved"}

    _run_check(engine_url, check, traffic=0.5)
