"""Offline and through the proxy, the same queries give the same run."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.corpora.trec_files import Document
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import IndexPlan, build
from querylift.index_tools.proxy_process import serving, to_toml
from querylift.index_tools.searching import (
    Searched,
    expand_all,
    match_form,
    search_offline,
    search_over_http,
    template_form,
)
from querylift.plugin.flow import Rules
from querylift.plugin.generators import factory
from querylift.plugin.proxy.server import expander_for
from querylift.plugin.settings import Settings, check, load
from querylift.plugin.testing import ManualClock
from tests.index_tools.test_indexing import Few

pytestmark = pytest.mark.engine
INDEX = "searching-test"
WORDS = "axon neuron cell nerve fibre signal muscle brain blood heart lung vessel tissue organ skin bone".split()
QUERIES = {"1": "axon signal", "2": "blood vessel", "3": "bone tissue", "4": '"quoted words"', "5": "lung organ skin"}


@pytest.fixture(scope="module")
def engine(opensearch: str) -> Iterator[Engine]:
    texts = (" ".join(WORDS[(i * k) % 16] for k in range(1, 9)) + f" rare{i % 40}" for i in range(200))
    documents = [Document(f"d{i}", WORDS[i % 16], text) for i, text in enumerate(texts)]
    with Engine(check({"engine": opensearch})) as made:
        build(made, Few(documents), IndexPlan(INDEX))
        yield made
        made.call("DELETE", f"/{INDEX}")


@pytest.fixture
def table(tmp_path: Path) -> str:
    rows = [{"query": q, "text": f"{WORDS[i]} {WORDS[-i]} nerve fibre"} for i, q in enumerate(QUERIES.values(), 3)]
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"table:{path}"


def _settings(engine: Engine, generator: str, **table: Any) -> dict[str, Any]:
    index = {INDEX: {"weight": 0.4, **table}}
    return {
        "engine": engine.url,
        "generator": generator,
        "budget_ms": 5000,
        "index": index,
        "feedback": {"field": "contents"},
    }


def _offline(engine: Engine, settings: Settings) -> Searched:
    async def expanded() -> Any:
        async with expander_for(settings, factory.make(settings.generator, settings)) as expander:
            rules = Rules(settings, clock=ManualClock())
            return await expand_all(QUERIES, index=INDEX, rules=rules, expander=expander, depth=50)

    return search_offline(engine, QUERIES, index=INDEX, results=asyncio.run(expanded()), depth=50)


@pytest.mark.parametrize("mode", ["boost", "widen"])
@pytest.mark.parametrize("generator", ["table", "feedback", "none"])
def test_offline_and_through_the_proxy_the_order_is_identical(
    engine: Engine, table: str, generator: str, mode: str
) -> None:
    given = _settings(engine, table if generator == "table" else generator, mode=mode)
    offline = _offline(engine, check(given))
    with serving(given) as proxy:
        through = asyncio.run(search_over_http(proxy.url, QUERIES, index=INDEX, depth=50))
    assert through.run == offline.run
    assert through.outcomes == offline.outcomes
    assert all(len(docs) > 5 for q, docs in through.run.items() if q != "4")
    plain = search_offline(engine, QUERIES, index=INDEX, depth=50)
    assert (plain.run == through.run) == (generator == "none")
    assert through.outcomes["4"] == "skipped;quoted"


def test_a_search_of_the_users_own_is_expanded_and_its_filter_kept(engine: Engine, table: str) -> None:
    template = {
        "from": 5,
        "query": {
            "bool": {
                "must": {"multi_match": {"query": "{{query}}", "fields": ["title^2", "text"]}},
                "filter": {"match": {"title": "axon"}},
            }
        },
    }
    settings = check(_settings(engine, table))

    async def expanded() -> Any:
        async with expander_for(settings, factory.make(settings.generator, settings)) as expander:
            rules = Rules(settings, clock=ManualClock())
            form = template_form(template)
            return await expand_all(QUERIES, index=INDEX, rules=rules, expander=expander, depth=50, form=form)

    results = asyncio.run(expanded())
    found = search_offline(engine, QUERIES, index=INDEX, results=results, depth=50, form=template_form(template))
    assert found.outcomes["1"] == "expanded"
    assert set(found.run["1"]) <= {f"d{i}" for i in range(0, 200, 16)}
    assert len(found.run["1"]) == 13


def test_several_fields_become_a_multi_match() -> None:
    body = json.loads(match_form(("title^2", "text"))("axon", 7))
    assert body == {
        "query": {"multi_match": {"query": "axon", "fields": ["title^2", "text"]}},
        "size": 7,
        "_source": False,
    }


def test_the_admin_page_counts_explains_and_is_well(engine: Engine, table: str) -> None:
    import urllib.request

    with serving(_settings(engine, table)) as proxy:
        asyncio.run(search_over_http(proxy.url, QUERIES, index=INDEX, depth=10))
        with urllib.request.urlopen(f"{proxy.admin_url}/metrics") as answer:
            metrics = answer.read().decode()
        with urllib.request.urlopen(
            f"{proxy.admin_url}/_querylift/explain?index={INDEX}&q=axon+signal&field=contents"
        ) as answer:
            told = json.load(answer)
        assert proxy.health()["status"] == "ok"
    assert 'querylift_searches_total{outcome="expanded",reason=""} 4.0' in metrics
    assert 'querylift_searches_total{outcome="skipped",reason="quoted"} 1.0' in metrics
    assert told["outcome"] == "cached"
    assert told["body"]["query"]["bool"]["must"] == [{"match": {"contents": "axon signal"}}]


def test_sighup_switches_an_index_off_without_a_restart(engine: Engine, table: str) -> None:
    import signal

    given = _settings(engine, table)
    with serving(given) as proxy:
        assert asyncio.run(_outcome(proxy.url)) == "expanded"
        text = proxy.config.read_text(encoding="utf-8")
        proxy.config.write_text(text.replace('"weight" = 0.4', '"weight" = 0.4\n"enabled" = false'), encoding="utf-8")
        proxy.process.send_signal(signal.SIGHUP)
        assert asyncio.run(_until(proxy.url, "skipped;off"))
        proxy.config.write_text("nonsense =", encoding="utf-8")
        proxy.process.send_signal(signal.SIGHUP)
        assert asyncio.run(_outcome(proxy.url)) == "skipped;off"
        assert "the settings were not taken" in _log_of(proxy.log)


def _log_of(log: Path) -> str:
    import time

    for _ in range(100):
        if "were not taken" in log.read_text(encoding="utf-8"):
            break
        time.sleep(0.05)
    return log.read_text(encoding="utf-8")


async def _outcome(url: str) -> str:
    return (await search_over_http(url, {"1": QUERIES["1"]}, index=INDEX, depth=10)).outcomes["1"]


async def _until(url: str, outcome: str) -> bool:
    for _ in range(100):
        if await _outcome(url) == outcome:
            return True
        await asyncio.sleep(0.05)
    return False


def test_settings_written_as_toml_are_read_back(tmp_path: Path) -> None:
    given = {
        "engine": "http://127.0.0.1:1",
        "index": {"a.b*": {"weight": 0.5, "fields": ["x y"]}},
        "cache": {"size": 3},
    }
    path = tmp_path / "querylift.toml"
    path.write_text(to_toml(given), encoding="utf-8")
    assert load(path, {}) == check(given)
