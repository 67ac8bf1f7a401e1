"""The same queries give the same run offline and through the proxy."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from querylift.index_tools.corpora.records import Document
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.index_tools.proxy_process import format_toml, run_proxy
from querylift.index_tools.searching import (
    SearchedRun,
    expand_all,
    make_match_formatter,
    make_template_formatter,
    search_offline,
    search_over_http,
)
from querylift.plugin.broker import open_broker
from querylift.plugin.errors import EngineError
from querylift.plugin.flow import ExpansionRules
from querylift.plugin.generators import factory
from querylift.plugin.settings import Settings, load_settings, parse_settings
from querylift.plugin.testing import ManualClock
from tests.index_tools.test_indexing import SmallCorpus

pytestmark = pytest.mark.engine
INDEX = "searching-test"
WORDS = "axon neuron cell nerve fibre signal muscle brain blood heart lung vessel tissue organ skin bone".split()
QUERIES = {"1": "axon signal", "2": "blood vessel", "3": "bone tissue", "4": '"quoted words"', "5": "lung organ skin"}


@pytest.fixture(scope="module")
def engine(opensearch: str) -> Iterator[Engine]:
    texts = (" ".join(WORDS[(i * k) % 16] for k in range(1, 9)) + f" rare{i % 40}" for i in range(200))
    documents = [Document(f"d{i}", WORDS[i % 16], text) for i, text in enumerate(texts)]
    with Engine(parse_settings({"engine": opensearch})) as client:
        build_index(client, SmallCorpus(documents), IndexPlan(INDEX))
        yield client
        client.call("DELETE", f"/{INDEX}")


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = [
        {"query": query, "text": f"{WORDS[i]} {WORDS[-i]} nerve fibre"} for i, query in enumerate(QUERIES.values(), 3)
    ]
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"table:{path}"


def _make_settings(engine: Engine, generator: str, **table: Any) -> dict[str, Any]:
    index = {INDEX: {"weight": 0.4, **table}}
    return {
        "engine": engine.url,
        "generator": generator,
        "budget_ms": 5000,
        "index": index,
        "feedback": {"field": "contents"},
    }


def _search_offline(engine: Engine, settings: Settings) -> SearchedRun:
    async def expand() -> Any:
        async with open_broker(settings, factory.make_generator(settings.generator[0], settings)) as broker:
            rules = ExpansionRules(settings, clock=ManualClock())
            return await expand_all(QUERIES, index=INDEX, rules=rules, broker=broker, depth=50)

    return search_offline(engine, QUERIES, index=INDEX, results=asyncio.run(expand()), depth=50)


@pytest.mark.parametrize("mode", ["boost", "widen"])
@pytest.mark.parametrize("generator", ["table", "feedback", "none"])
def test_offline_and_through_the_proxy_the_order_is_identical(
    engine: Engine, table: str, generator: str, mode: str
) -> None:
    values = _make_settings(engine, table if generator == "table" else generator, mode=mode)
    offline_run = _search_offline(engine, parse_settings(values))
    with run_proxy(values) as proxy:
        proxy_run = asyncio.run(search_over_http(proxy.url, QUERIES, index=INDEX, depth=50))
    assert proxy_run.run == offline_run.run
    assert proxy_run.outcomes == offline_run.outcomes
    assert all(len(doc_ids) > 5 for query_id, doc_ids in proxy_run.run.items() if query_id != "4")
    plain_run = search_offline(engine, QUERIES, index=INDEX, depth=50)
    assert (plain_run.run == proxy_run.run) == (generator == "none")
    assert proxy_run.outcomes["4"] == "skipped;quoted"


def test_the_users_own_search_body_is_expanded_and_keeps_its_filter(engine: Engine, table: str) -> None:
    template = {
        "from": 5,
        "query": {
            "bool": {
                "must": {"multi_match": {"query": "{{query}}", "fields": ["title^2", "text"]}},
                "filter": {"match": {"title": "axon"}},
            }
        },
    }
    settings = parse_settings(_make_settings(engine, table))

    async def expand() -> Any:
        async with open_broker(settings, factory.make_generator(settings.generator[0], settings)) as broker:
            rules = ExpansionRules(settings, clock=ManualClock())
            format_body = make_template_formatter(template)
            return await expand_all(QUERIES, index=INDEX, rules=rules, broker=broker, depth=50, format_body=format_body)

    results = asyncio.run(expand())
    searched = search_offline(
        engine, QUERIES, index=INDEX, results=results, depth=50, format_body=make_template_formatter(template)
    )
    assert searched.outcomes["1"] == "expanded"
    assert set(searched.run["1"]) <= {f"d{i}" for i in range(0, 200, 16)}
    assert len(searched.run["1"]) == 13


def test_several_fields_become_a_multi_match() -> None:
    body = json.loads(make_match_formatter(("title^2", "text"))("axon", 7))
    assert body == {
        "query": {"multi_match": {"query": "axon", "fields": ["title^2", "text"]}},
        "size": 7,
        "_source": False,
    }


def test_over_http_a_refused_search_has_no_hits_and_the_others_go_on(engine: Engine) -> None:
    queries = {"1": "axon", "2": " ".join(f"w{number}" for number in range(1100)), "3": "bone"}
    searched = asyncio.run(search_over_http(engine.url, queries, index=INDEX, depth=10))
    assert [len(searched.run[query_id]) for query_id in queries] == [10, 0, 10]
    assert searched.refusals == {"2": "failed to create query: maxClauseCount is set to 1024"}


def test_over_http_any_other_failure_ends_the_run_and_names_the_query(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"query '7': .*/gone/_search answered with status 404: no such index"):
        asyncio.run(search_over_http(engine.url, {"7": "axon"}, index="gone", depth=10))
    with pytest.raises(
        EngineError, match=r"query '7': http://127\.0\.0\.1:9/x/_search did not answer: ClientConnector"
    ):
        asyncio.run(search_over_http("http://127.0.0.1:9", {"7": "axon"}, index="x", depth=10))


def test_the_admin_page_counts_outcomes_explains_searches_and_reports_health(engine: Engine, table: str) -> None:
    import urllib.request

    with run_proxy(_make_settings(engine, table)) as proxy:
        asyncio.run(search_over_http(proxy.url, QUERIES, index=INDEX, depth=10))
        with urllib.request.urlopen(f"{proxy.admin_url}/metrics") as answer:
            metrics = answer.read().decode()
        with urllib.request.urlopen(
            f"{proxy.admin_url}/_querylift/explain?index={INDEX}&q=axon+signal&field=contents"
        ) as answer:
            explanation = json.load(answer)
        assert proxy.read_health()["status"] == "ok"
    assert f'querylift_searches_total{{index="{INDEX}",outcome="expanded",reason=""}} 4.0' in metrics
    assert f'querylift_searches_total{{index="{INDEX}",outcome="skipped",reason="quoted"}} 1.0' in metrics
    assert explanation["outcome"] == "cached"
    assert explanation["body"]["query"]["bool"]["must"] == [{"match": {"contents": "axon signal"}}]


def test_an_unknown_parameter_of_the_explain_page_is_named_with_the_right_ones(engine: Engine, table: str) -> None:
    async def explain(query_string: str) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{proxy.admin_url}/_querylift/explain?index={INDEX}&{query_string}") as answer:
                return answer.status, await answer.json()

    with run_proxy(_make_settings(engine, table, fields=["title", "contents"])) as proxy:
        wrong = asyncio.run(explain("text=axon+signal"))
        assert asyncio.run(explain("field=title")) == (
            400,
            {"error": "q is missing; give the query as q, or send a search as the body"},
        )
        _, explanation = asyncio.run(explain("q=axon+signal"))
    error = "'text' is not a parameter; use index, q, field, or send a search as the body"
    assert wrong == (400, {"error": error})
    assert explanation["body"]["query"]["bool"]["must"][0]["multi_match"]["fields"] == ["title", "contents"]


def test_sighup_switches_an_index_off_without_a_restart(engine: Engine, table: str) -> None:
    import signal

    values = _make_settings(engine, table)
    with run_proxy(values) as proxy:
        assert asyncio.run(_fetch_outcome(proxy.url)) == "expanded"
        text = proxy.config.read_text(encoding="utf-8")
        proxy.config.write_text(text.replace('"weight" = 0.4', '"weight" = 0.4\n"enabled" = false'), encoding="utf-8")
        proxy.process.send_signal(signal.SIGHUP)
        assert asyncio.run(_wait_for_outcome(proxy.url, "skipped;off"))
        proxy.config.write_text("nonsense =", encoding="utf-8")
        proxy.process.send_signal(signal.SIGHUP)
        assert asyncio.run(_fetch_outcome(proxy.url)) == "skipped;off"
        assert "the settings were not applied" in _wait_for_log(proxy.log)


def _wait_for_log(log: Path) -> str:
    import time

    for _ in range(100):
        if "were not applied" in log.read_text(encoding="utf-8"):
            break
        time.sleep(0.05)
    return log.read_text(encoding="utf-8")


async def _fetch_outcome(url: str) -> str:
    return (await search_over_http(url, {"1": QUERIES["1"]}, index=INDEX, depth=10)).outcomes["1"]


async def _wait_for_outcome(url: str, outcome: str) -> bool:
    for _ in range(100):
        if await _fetch_outcome(url) == outcome:
            return True
        await asyncio.sleep(0.05)
    return False


def test_settings_written_as_toml_are_read_back(tmp_path: Path) -> None:
    values = {
        "engine": "http://127.0.0.1:1",
        "index": {"a.b*": {"weight": 0.5, "fields": ["x y"]}},
        "cache": {"size": 3},
    }
    path = tmp_path / "querylift.toml"
    path.write_text(format_toml(values), encoding="utf-8")
    assert load_settings(path, {}) == parse_settings(values)
