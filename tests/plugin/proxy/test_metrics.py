"""The metrics: each search is counted under the table of the settings that governs it, and docs/reference/metrics.md is true."""

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from querylift.plugin.errors import GeneratorError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generation_meter import WaitingLine
from querylift.plugin.proxy.metrics import Metrics
from querylift.plugin.proxy.search_meters import SearchMeters
from querylift.plugin.proxy.settings_reload import reload_settings
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.paths import ROOT
from tests.helpers.proxy_scenarios import RAW_BODY, run_with_proxy, send_search
from tests.helpers.upstream_stub import RunningProxy, StubEngine, answer_with

TABLES = {"docs": {}, "logs-*": {"enabled": False}, "a": {}, "b": {}, "c": {"weight": 0.5}}


def read_samples(metrics: Metrics) -> dict[str, float]:
    """Return every sample by its name and labels, as Prometheus writes them: `name{label="value"}`."""
    lines = metrics.render().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@pytest.mark.parametrize(
    ("expression", "label"),
    [
        ("docs", "docs"),
        ("logs-2026.11", "logs-*"),
        ("logs-*", "logs-*"),
        ("a,b", "a"),
        (",a", "a"),
        ("a,c", "other"),
        ("nobody-has-this", "other"),
        ("_all", "other"),
        ("*", "other"),
        ("", "other"),
        (None, "other"),
        ("x" * 5000, "other"),
    ],
)
def test_the_label_of_an_index_is_the_name_of_its_table(expression: str | None, label: str) -> None:
    meters = SearchMeters(Metrics(), parse_settings({"index": TABLES}))
    assert [meters.find_label(expression), meters.find_label(expression)] == [label, label]


def test_a_pattern_for_every_index_governs_all() -> None:
    meters = SearchMeters(Metrics(), parse_settings({"index": {"*": {}}}))
    assert [meters.find_label(expression) for expression in ("_all", "*", "docs")] == ["*", "*", "*"]


def test_searches_are_counted_by_table_and_outcome() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for path in ("/docs/_search", "/docs/_search", "/logs-1/_search", "/made-up-1/_search", "/made-up-2/_search"):
            await send_search(client, proxy, path=path)
        samples = read_samples(proxy.application.journal.metrics)
        counted = {name: value for name, value in samples.items() if name.startswith("querylift_searches") and value}
        assert counted == {
            'querylift_searches_total{index="docs",outcome="expanded",reason=""}': 1,
            'querylift_searches_total{index="docs",outcome="cached",reason=""}': 1,
            'querylift_searches_total{index="logs-*",outcome="skipped",reason="off"}': 1,
            'querylift_searches_total{index="other",outcome="skipped",reason="index"}': 2,
        }
        counts = {name: value for name, value in samples.items() if name.startswith("querylift_added_seconds_count")}
        assert counts == {
            'querylift_added_seconds_count{index="docs"}': 2,
            'querylift_added_seconds_count{index="logs-*"}': 1,
            'querylift_added_seconds_count{index="other"}': 2,
        }

    run_with_proxy(check, index=TABLES)


def test_a_point_in_time_search_is_counted_under_the_index_of_the_settings() -> None:
    body = b'{"pit": {"id": "p"}, "query": {"match": {"text": "download a page"}}}'

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy, path="/_search", data=body)
        samples = read_samples(proxy.application.journal.metrics)
        assert samples['querylift_searches_total{index="docs",outcome="expanded",reason=""}'] == 1

    run_with_proxy(check, pit_index="docs")


def test_a_reloaded_table_gives_the_label_of_the_next_search() -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy)
        settings = parse_settings(proxy.application.settings.model_dump() | {"index": {"d*": {}}})
        await reload_settings(proxy.application, lambda: settings)
        await send_search(client, proxy)
        samples = read_samples(proxy.application.journal.metrics)
        assert samples['querylift_searches_total{index="docs",outcome="expanded",reason=""}'] == 1
        assert samples['querylift_searches_total{index="d*",outcome="cached",reason=""}'] == 1

    run_with_proxy(check)


def test_a_rewrite_that_the_engine_rejects_is_counted_and_a_table_without_one_shows_zero() -> None:
    async def answer(request: Any, writer: asyncio.StreamWriter) -> None:
        is_rewrite = b"urlopen" in request.body
        await answer_with(status="400 Bad Request" if is_rewrite else "200 OK")(request, writer)

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        metrics = proxy.application.journal.metrics
        samples = read_samples(metrics)
        assert samples['querylift_refused_total{index="docs"}'] == 0
        assert samples['querylift_searches_total{index="docs",outcome="error",reason="internal"}'] == 0
        await send_search(client, proxy)
        assert read_samples(metrics)['querylift_refused_total{index="docs"}'] == 1

    run_with_proxy(check, answer)


def test_the_generator_s_work_is_counted_where_it_happens() -> None:
    generator = ScriptedGenerator({"download a page": Expansion(text="urlopen"), "fails": GeneratorError("no")})

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        metrics = proxy.application.journal.metrics
        assert read_samples(metrics)['querylift_generation_failures_total{generator="none",reason="failed"}'] == 0
        first_search = asyncio.ensure_future(send_search(client, proxy))
        while not generator.queries:
            await asyncio.sleep(0.01)
        assert read_samples(metrics)['querylift_generations_pending{generator="none"}'] == 1
        await first_search
        await send_search(client, proxy, data=RAW_BODY.replace(b"download a page", b"fails"))
        samples = read_samples(metrics)
        assert samples['querylift_generations_pending{generator="none"}'] == 0
        assert samples['querylift_generation_seconds_count{generator="none"}'] == 2
        assert samples['querylift_generation_failures_total{generator="none",reason="failed"}'] == 1

    generator.delay_s = 0.1
    run_with_proxy(check, generator=generator)


def test_those_beyond_the_places_of_a_generator_wait() -> None:
    reports: list[int] = []
    line = WaitingLine(1, reports.append)
    with line.hold_place():
        assert reports == []
        with line.hold_place(), line.hold_place():
            assert reports == [1, 1]
    assert reports == [1, 1, -1, -1]


def test_the_table_of_metrics_says_what_metrics_there_are(tmp_path: Path) -> None:
    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy)
        assert _read_documented_metrics() == _read_real_metrics(proxy.application.journal.metrics)

    run_with_proxy(check, log={"searches_file": str(tmp_path / "queries.jsonl")})


def _read_documented_metrics() -> dict[str, tuple[str, frozenset[str]]]:
    page = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(querylift_\w+)` \| (\w+) \| ([^|]+) \|", page, flags=re.M)
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def _read_real_metrics(metrics: Metrics) -> dict[str, tuple[str, frozenset[str]]]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        family.name + "_total" * (family.type == "counter"): (
            family.type,
            frozenset(label for sample in family.samples for label in sample.labels) - {"le"},
        )
        for family in families
    }


def test_each_generator_of_the_settings_has_its_own_series(tmp_path: Path) -> None:
    for name, text in (("shop", "urlopen"), ("help", "fetches")):
        (tmp_path / name).write_text(f'{{"query": "download a page", "text": "{text}"}}\n', encoding="utf-8")
    shop, help_pages = f"table:{tmp_path / 'shop'}", f"table:{tmp_path / 'help'}"

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        for path in ("/shop/_search", "/help/_search", "/help/_search"):
            await send_search(client, proxy, path=path)
        samples = read_samples(proxy.application.journal.metrics)
        assert samples[f'querylift_generation_seconds_count{{generator="{shop}"}}'] == 1
        assert samples[f'querylift_generation_seconds_count{{generator="{help_pages}"}}'] == 1
        assert samples['querylift_searches_total{index="help",outcome="cached",reason=""}'] == 1

    run_with_proxy(check, index={"shop": {"generator": shop}, "help": {"generator": help_pages}})
