"""docker/monitoring: every metric, label and value that the dashboard and the alerts name is one that Querylift has."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest
import yaml

from querylift.plugin.cache_faults import OPERATIONS
from querylift.plugin.generation_meter import GenerationFailure
from querylift.plugin.outcome import OUTCOME_KINDS, REASONS
from querylift.plugin.proxy.query_records.record_queue import RECORD_FATES
from tests.helpers.paths import ROOT
from tests.helpers.proxy_scenarios import run_with_proxy, send_search
from tests.helpers.upstream_stub import RunningProxy, StubEngine

FOLDER = ROOT / "docker/monitoring"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboards/querylift.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PAGE = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")

TARGET_LABELS = {"job", "instance"}
"""Labels that Prometheus itself adds to all that it reads."""
LABEL_VALUES: dict[str, set[str]] = {
    "outcome": {*OUTCOME_KINDS},
    "operation": {*OPERATIONS},
    "fate": {*RECORD_FATES},
    "job": {"querylift"},
}
METRIC = re.compile(r"\b(querylift_\w+|up)\b(?:\{([^}]*)\})?")


def _list_expressions() -> dict[str, str]:
    """Return every expression of the dashboard, the alerts and the page of metrics, by where it stands."""
    expressions = {
        f"panel {panel['title']}, {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]
    }
    expressions |= {f"alert {rule['alert']}": rule["expr"] for rule in RULES}
    documented = re.findall(r"^\| [^|]+\? \| `(.+)` \|$", PAGE, flags=re.M)
    return expressions | {f"docs, line {i}": text.replace("\\|", "|") for i, text in enumerate(documented, start=1)}


EXPRESSIONS = _list_expressions()


@pytest.fixture(scope="module")
def labels_by_metric(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The names of all samples of a proxy that has answered a search, and the labels of each."""
    log = {"searches_file": str(tmp_path_factory.mktemp("records") / "queries.jsonl")}
    texts: list[str] = []

    async def check(client: aiohttp.ClientSession, proxy: RunningProxy, engine: StubEngine) -> None:
        await send_search(client, proxy)
        texts.append(proxy.application.journal.metrics.render().decode())

    run_with_proxy(check, log=log)
    labels: dict[str, set[str]] = defaultdict(set, {"up": set(TARGET_LABELS)})
    for name, label_text in re.findall(r"^(querylift_\w+)(?:\{(.*)\})? \S+$", texts[0], flags=re.M):
        labels[name] |= TARGET_LABELS | set(re.findall(r'(\w+)="', label_text))
    return labels


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_every_metric_and_every_label_exists(place: str, labels_by_metric: dict[str, set[str]]) -> None:
    expression = EXPRESSIONS[place]
    metrics = METRIC.findall(expression)
    assert metrics
    for name, matchers in metrics:
        assert name in labels_by_metric, f"{name} is not in /metrics"
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            assert label in labels_by_metric[name], f"{name} has no label {label}"
            if value != "$index":
                assert set(value.split("|")) <= _list_values(name, label)
    common_labels = set.intersection(*(labels_by_metric[name] for name, _ in metrics))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= common_labels


def _list_values(metric: str, label: str) -> set[str]:
    if label == "reason":
        return set(get_args(GenerationFailure)) if "failures" in metric else set(REASONS)
    return LABEL_VALUES[label]


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_every_quantile_is_of_a_histogram_and_every_rate_of_a_counter(
    place: str, labels_by_metric: dict[str, set[str]]
) -> None:
    expression = EXPRESSIONS[place]
    for name in re.findall(r"(?:rate|increase)\((\w+)", expression):
        assert name.endswith(("_total", "_bucket", "_count"))
    assert (
        expression.count("histogram_quantile")
        == expression.count("_bucket")
        == expression.count(" le)") + (expression.count("(le)"))
    )


def test_the_dashboard_asks_what_a_search_team_asks() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        "At a glance", "Is it slowing searches?", "Is it expanding?", "Does it break?", "Is there a queue?",
    ]  # fmt: skip
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)


def test_no_two_panels_of_the_dashboard_overlap() -> None:
    cells: list[tuple[int, int]] = []
    for panel in DASHBOARD["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        columns, rows = range(position["x"], position["x"] + position["w"]), range(position["h"])
        cells += [(x, position["y"] + row) for x in columns for row in rows]
    assert len(cells) == len(set(cells))


def test_every_metric_of_the_page_is_on_the_dashboard() -> None:
    documented = set(re.findall(r"^\| `(querylift_\w+)`", PAGE, flags=re.M))
    shown = {
        name.removesuffix("_bucket").removesuffix("_count")
        for panel in PANELS
        for target in panel["targets"]
        for name, _ in METRIC.findall(target["expr"])
    }
    assert documented == shown - {"up"}


def test_every_alert_says_what_is_wrong_and_how_urgent_it_is() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])):
            groups = re.findall(r"by \(([^)]*)\)", rule["expr"])
            assert not groups or all(label in group for group in groups)


@pytest.mark.parametrize(
    "arguments", [("rules", "alerts.yml"), ("config", "--syntax-only", "prometheus.yml")], ids=["alerts", "prometheus"]
)
def test_prometheus_accepts_the_files(arguments: tuple[str, ...]) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    kind, *options, name = arguments
    command = ["promtool", "check", kind, *options, str(FOLDER / name)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr


SERIES = {
    "QueryliftDown": {'up{job="querylift", instance="a:9281"}': "1 1 0x40"},
    "QueryliftEngineDown": {
        'querylift_searches_total{index="docs", outcome="error", reason="engine"}': "0+60x40",
        'querylift_searches_total{index="docs", outcome="cached", reason=""}': "0+540x40",
    },
    "QueryliftSlowsSearches": {
        'querylift_added_seconds_bucket{index="docs", le="0.25"}': "0+50x60",
        'querylift_added_seconds_bucket{index="docs", le="1"}': "0+100x60",
        'querylift_added_seconds_bucket{index="docs", le="+Inf"}': "0+100x60",
    },
    "QueryliftMissesItsBudget": {
        'querylift_searches_total{index="docs", outcome="late", reason="budget"}': "0+60x60",
        'querylift_searches_total{index="docs", outcome="cached", reason=""}': "0+40x60",
    },
    "QueryliftRewritesRefused": {'querylift_refused_total{index="docs"}': "0x20 1 2 3 4x30"},
    "QueryliftFault": {'querylift_searches_total{index="docs", outcome="error", reason="internal"}': "0x20 1x20"},
    "QueryliftGeneratorFails": {
        'querylift_generation_failures_total{generator="llama", reason="failed"}': "0+20x60",
        'querylift_generation_seconds_count{generator="llama"}': "0+100x60",
    },
    "QueryliftGeneratorBusy": {'querylift_generation_failures_total{generator="llama", reason="busy"}': "0+60x60"},
    "QueryliftGeneratorRestarts": {
        'querylift_generator_restarts_total{generator="llama", instance="a:9281"}': "0 1 2 3 4x30"
    },
    "QueryliftRecordsLost": {'querylift_query_records_total{destination="index", fate="dropped"}': "0x20 1+1x20"},
    "QueryliftCacheFails": {'querylift_cache_errors_total{operation="read", instance="a:9281"}': "0+1x60"},
}
"""For each alert, what makes it fire: values at each minute."""


@pytest.mark.parametrize("alert", SERIES)
def test_each_alert_fires_on_what_it_is_for_and_on_nothing_else(alert: str, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    series = [{"series": name, "values": values} for name, values in SERIES[alert].items()]
    quiet = [{**entry, "values": "0x60"} for entry in series if alert != "QueryliftDown"]
    tests = [(series, f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})', "1"),
             (series, f'count(ALERTS{{alertname!="{alert}", alertstate="firing"}}) or vector(0)', "0"),
             (quiet, 'count(ALERTS{alertstate="firing"}) or vector(0)', "0")]  # fmt: skip
    groups = [
        {
            "interval": "1m",
            "input_series": input_series,
            "promql_expr_test": [
                {"expr": expression, "eval_time": "28m", "exp_samples": [{"labels": "{}", "value": float(value)}]}
            ],
        }
        for input_series, expression, value in tests
    ]
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(FOLDER / "alerts.yml")], "tests": groups}), encoding="utf-8")
    process = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stdout + process.stderr
