"""A share of users gets expanded searches. The answer and the log record say which, and how to log clicks."""

import json
import logging
import re
from typing import Any

import aiohttp
import pytest

from querylift.plugin.experiments import Experiment
from querylift.plugin.proxy.journal import SEARCH_LOGGER
from querylift.plugin.settings import parse_settings
from tests.helpers.proxy_scenarios import BODY, JSON_HEADERS, RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import RunningProxy, StubEngine, answer_with

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
HALF: dict[str, Any] = {"index": {"docs": {"traffic": 0.5}}, "log": {"searches": True}}


def _find_user(variant: str) -> str:
    """Return the name of a user that is drawn into this variant of the experiment `docs`."""
    experiment = Experiment("docs", 0.5, b"x-opaque-id")
    names = (f"user {i}" for i in range(100))
    return next(name for name in names if experiment.assign([(b"x-opaque-id", name.encode())], "").variant == variant)


CONTROL_USER, EXPANDED_USER = _find_user("control"), _find_user("expanded")


def _read_records(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == SEARCH_LOGGER]


async def _search_as(client: aiohttp.ClientSession, proxy: RunningProxy, user: str, **options: Any) -> tuple[str, str]:
    """Return the outcome and the id of a search."""
    headers = JSON_HEADERS | {"X-Opaque-Id": user}
    url = proxy.url + options.pop("path", "/docs/_search")
    async with client.post(url, data=options.pop("data", RAW_BODY), headers=headers) as answer:
        return answer.headers["X-Querylift"], answer.headers.get("X-Querylift-Query-Id", "none")


def test_the_control_group_gets_the_bytes_that_it_sent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, SEARCH_LOGGER)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await _search_as(client, proxy, CONTROL_USER))[0] == "skipped;control"
        assert (await _search_as(client, proxy, EXPANDED_USER))[0] == "expanded"
        assert (await _search_as(client, proxy, CONTROL_USER))[0] == "skipped;control"
        assert [request.body == RAW_BODY for request in engine.requests] == [True, False, True]

    run_with_proxy(check, **HALF)
    records = _read_records(caplog)
    assert [record["query_attributes"]["variant"] for record in records] == ["control", "expanded", "control"]
    assert {record["query_attributes"]["experiment"] for record in records} == {"docs"}
    assert {record["query_attributes"]["traffic"] for record in records} == {0.5}
    units = [record["query_attributes"]["unit"] for record in records]
    assert units[0] == units[2] != units[1]


def test_every_search_has_an_id_of_its_own_in_the_answer_and_in_the_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, SEARCH_LOGGER)
    ids = []

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for user in (CONTROL_USER, EXPANDED_USER, EXPANDED_USER):
            ids.append((await _search_as(client, proxy, user))[1])
        ubi = json.dumps(BODY | {"ext": {"ubi": {"query_id": "shop-17"}}}).encode()
        ids.append((await _search_as(client, proxy, EXPANDED_USER, data=ubi))[1])

    run_with_proxy(check, **HALF)
    assert [record["query_id"] for record in _read_records(caplog)] == ids
    assert len(set(ids)) == 4
    assert all(UUID.match(query_id) for query_id in ids[:3])
    assert ids[3] == "shop-17"


def test_without_an_experiment_answers_have_no_id_and_records_no_variant(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, SEARCH_LOGGER)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert await _search_as(client, proxy, CONTROL_USER) == ("expanded", "none")

    run_with_proxy(check, log={"searches": True})
    (record,) = _read_records(caplog)
    assert {"variant", "experiment", "traffic", "unit"}.isdisjoint(record["query_attributes"])


def test_another_header_may_tell_users_apart() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for user, outcome in ((CONTROL_USER, "skipped;control"), (EXPANDED_USER, "expanded")):
            headers = JSON_HEADERS | {"X-User-Id": user, "X-Opaque-Id": "a request"}
            assert (await send_search(client, proxy, headers=headers))[1] == outcome

    run_with_proxy(check, index={"docs": {"traffic": 0.5, "traffic_by": "X-User-Id"}})


def test_each_search_of_an_msearch_belongs_to_the_variant_of_its_own_index(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, SEARCH_LOGGER)
    lines = b"".join(b'{"index":"%s"}\n%s\n' % (name, RAW_BODY) for name in (b"docs", b"all", b"docs"))

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        outcome, ids = await _search_as(client, proxy, CONTROL_USER, path="/_msearch", data=lines)
        assert outcome == "expanded"
        first_id, middle, last_id = ids.split(",")
        assert UUID.match(first_id) and middle == "" and UUID.match(last_id)

    answer = b'{"responses":[{"status":200},{"status":200},{"status":200}]}'
    run_with_proxy(check, answer_with(answer), index={"docs": {"traffic": 0.5}, "all": {}}, log={"searches": True})
    variants = [record["query_attributes"].get("variant") for record in _read_records(caplog)]
    assert variants == ["control", None, "control"]


def test_an_msearch_of_many_searches_gets_no_long_header() -> None:
    lines = (b'{"index":"docs"}\n' + RAW_BODY + b"\n") * 17

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await _search_as(client, proxy, CONTROL_USER, path="/_msearch", data=lines))[1] == "none"

    run_with_proxy(check, answer_with(b'{"responses":[]}'), **HALF)


def test_a_rejected_rewrite_still_counts_for_its_variant(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, SEARCH_LOGGER)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await _search_as(client, proxy, EXPANDED_USER))[0] == "skipped;original-fails"
        assert (await _search_as(client, proxy, CONTROL_USER))[0] == "skipped;control"

    run_with_proxy(check, answer_with(b"{}", status="400 Bad Request"), **HALF)
    assert [record["query_attributes"]["variant"] for record in _read_records(caplog)] == ["expanded", "control"]


def test_a_client_that_may_not_search_learns_no_variant() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        headers = JSON_HEADERS | {"X-Opaque-Id": CONTROL_USER}
        async with client.post(f"{proxy.url}/docs/_search", data=RAW_BODY, headers=headers) as answer:
            assert not [name for name in answer.headers if name.lower().startswith("x-querylift")]

    run_with_proxy(check, answer_with(b"{}", status="403 Forbidden"), **HALF)


def test_the_share_is_changed_without_a_restart() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        assert (await _search_as(client, proxy, CONTROL_USER))[0] == "skipped;control"
        values = proxy.application.settings.model_dump() | {"index": {"docs": {"traffic": 1}}}
        proxy.application.apply_settings(parse_settings(values))
        assert (await _search_as(client, proxy, CONTROL_USER))[0] == "expanded"

    run_with_proxy(check, **HALF)
