"""`make demo`: start a real engine with a proxy in front of it, show one search before and after, and print a table.

Nothing is prepared. The demo makes the node, the index, the proxies and every number while it runs, and stops the
servers at the end.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.conclusion import OutcomeCounts
from querylift.index_tools.evaluation.experiment import System, Task, create_report
from querylift.index_tools.evaluation.html_report import Report, write_report
from querylift.index_tools.evaluation.text_table import render_table
from querylift.index_tools.fast_expander.build import BuildRequest, build_expander
from querylift.index_tools.indexing import CONTENTS_FIELD, IndexPlan, build_index
from querylift.index_tools.node.local_node import check_node_packages, is_engine_fetched, run_temporary_node
from querylift.index_tools.proxy_process import RunningProxy, run_proxy
from querylift.index_tools.searching import SearchedRun, format_search_body, search_over_http
from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.expander_folder import RECORD_FILE
from querylift.plugin.files import find_cache_folder
from querylift.plugin.settings import parse_settings

INDEX = "docs"
WEIGHT = 0.2
DEPTH = 100
COLD_QUERIES = 8
_SHOWN_LIST_ITEMS = 3
BUDGET_MS = 20_000
"""Long enough to expand every query. The demo shows quality first, and the added time beside it."""
_PACKAGES = {
    "opensearchpy": "index",
    "jinja2": "index",
    "pytrec_eval": "index",
    "onnx": "expander-build",
    "onnxruntime": "expander",
    "llama_cpp": "llama",
}
"""The packages that the demo needs, each with the extra that installs it."""
EXPANDER_FOLDER = "demo-expander"
"""The folder of the fast expander in the cache. It saves a later demo the encoding."""

PrintLine = Callable[[str], None]


def run_demo(report_file: Path, print_line: PrintLine) -> Report:
    """Run the whole demo, write the report to `report_file`, and return it.

    Raise QueryliftError when a server does not come up, and MissingExtra before anything is started.
    """
    started_s = time.monotonic()
    _check_packages()
    print_line(
        "Starting OpenSearch."
        if is_engine_fetched()
        else "Downloading OpenSearch (85 MB, only once) and starting it. This takes about a minute."
    )
    with run_temporary_node() as node, Engine(parse_settings({"engine": node.url})) as engine:
        print_line(f"OpenSearch {node.version} runs at {node.url}.")
        corpus = load_corpus("builtin")
        document_count = build_index(engine, corpus, IndexPlan(INDEX))
        split = corpus.split_names[0]
        task = Task(corpus.name, split, INDEX, corpus.read_queries(split), corpus.read_qrels(split))
        print_line(f"Index {INDEX!r} holds {document_count} documents: the Python documentation.")
        print_line(f"There are {len(task.queries)} queries with judgments.")
        folder = _build_fast_expander(engine, print_line)
        generators = {"feedback": "RM3 feedback", "llama": "language model", f"expander:{folder}": "fast expander"}
        report = _measure_systems(engine, node.url, task, generators, print_line)
    write_report(report_file, report)
    print_line(f"\n{render_table(report.systems)}\n")
    print_line(_explain_verdicts(report))
    print_line(f"Report: {report_file}")
    print_line(f"The node and the proxies are stopped. The demo took {time.monotonic() - started_s:.0f} s.")
    return report


def _check_packages() -> None:
    """Raise MissingExtra for the first package that the demo needs and that is not installed."""
    check_node_packages()
    for package, extra in _PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, extra)


def _build_fast_expander(engine: Engine, print_line: PrintLine) -> Path:
    """Build the fast expander of the demo's index, and return its folder."""
    folder, started_s = find_cache_folder() / EXPANDER_FOLDER, time.monotonic()
    duration = "" if (folder / RECORD_FILE).is_file() else " The first time takes about half a minute."
    print_line(f"Building the fast expander from the index.{duration}")
    request = BuildRequest(INDEX, CONTENTS_FIELD, folder, threads=os.cpu_count() or 1)
    try:
        result = build_expander(engine, request)
    except SettingsError:  # the folder is of an older Querylift
        shutil.rmtree(folder)
        result = build_expander(engine, request)
    record, took_s = result.record, time.monotonic() - started_s
    print_line(f"The fast expander knows {record.terms} terms of {record.source.documents} documents ({took_s:.0f} s).")
    return folder


def _measure_systems(
    engine: Engine, url: str, task: Task, generators: Mapping[str, str], print_line: PrintLine
) -> Report:
    baseline_run = asyncio.run(search_over_http(url, task.queries, index=INDEX, depth=DEPTH))
    baseline = System("no expansion", baseline_run)
    systems = [_measure_system(generator, name, url, task, print_line) for generator, name in generators.items()]
    report = create_report(task, baseline, systems, engine=engine, mode="boost", weight=WEIGHT)
    _print_most_helped_query(report, systems[-1].searched, print_line)
    return report


def _make_proxy_settings(url: str, generator: str, cache: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "engine": url,
        "generator": generator,
        "budget_ms": BUDGET_MS,
        "cache": dict(cache),
        "index": {INDEX: {"mode": "boost", "weight": WEIGHT}},
        "feedback": {"field": CONTENTS_FIELD},
        "llama": {"max_seconds": BUDGET_MS / 1000},
    }


def _measure_system(generator: str, name: str, url: str, task: Task, print_line: PrintLine) -> System:
    """Measure one generator through its own proxy: the added time on a few queries, and the quality on all queries."""
    print_line(f"Measuring: {name}.")
    timed_queries = dict(list(task.queries.items())[:COLD_QUERIES])
    with run_proxy(_make_proxy_settings(url, generator, {})) as proxy:
        cold_ms = asyncio.run(_measure_added_ms(proxy, timed_queries))
        cached_ms = sorted(asyncio.run(_measure_added_ms(proxy, timed_queries)))
    # The cache file serves later demos. Only the model uses it, because other expansions depend on this index.
    cache = {"file": str(find_cache_folder() / "demo-expansions.db")} if generator == "llama" else {}
    with run_proxy(_make_proxy_settings(url, generator, cache)) as proxy:
        asyncio.run(_fill_cache(proxy, task.queries))
        searched = asyncio.run(search_over_http(proxy.url, task.queries, index=INDEX, depth=DEPTH))
        explanations = {
            query_id: _fetch_explanation(proxy, format_search_body(text)) for query_id, text in task.queries.items()
        }
    print_line(f"  Outcomes: {OutcomeCounts.of_run(searched).format_outcomes()}.")
    print_line(f"  A cached expansion adds {cached_ms[len(cached_ms) // 2]:+.1f} ms to a search (median).")
    expansions = {
        query_id: Expansion.from_json(explanation["expansion"]).to_summary()
        for query_id, explanation in explanations.items()
        if explanation["expansion"]
    }
    bodies = {
        query_id: json.dumps(explanation["body"]["query"]).encode() for query_id, explanation in explanations.items()
    }
    return System(name, SearchedRun(searched.run, searched.outcomes, expansions, bodies), cold_ms)


async def _measure_added_ms(proxy: RunningProxy, queries: Mapping[str, str]) -> list[float]:
    """Return the added time of each query: its time with expansion less its time with expansion switched off."""
    expanded = await search_over_http(proxy.url, queries, index=INDEX, depth=10)
    original = await search_over_http(proxy.url, queries, index=INDEX, depth=10, headers={"X-Querylift": "off"})
    return [expanded.took_ms[query_id] - original.took_ms[query_id] for query_id in queries]


async def _fill_cache(proxy: RunningProxy, queries: Mapping[str, str]) -> None:
    """Send every query once, several at a time, so that the worker's batch is full."""
    query_ids = list(queries)
    parts = [
        {query_id: queries[query_id] for query_id in query_ids[start::COLD_QUERIES]} for start in range(COLD_QUERIES)
    ]
    await asyncio.gather(*(search_over_http(proxy.url, part, index=INDEX, depth=1) for part in parts if part))


def _fetch_explanation(proxy: RunningProxy, body: bytes) -> dict[str, Any]:
    url = f"{proxy.admin_url}/_querylift/explain?index={INDEX}"
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        explanation: dict[str, Any] = json.load(answer)
        return explanation


def _print_most_helped_query(report: Report, searched: SearchedRun, print_line: PrintLine) -> None:
    """Print the query that the fast expander helped most: its hits before and after, its expansion, and its rewrite."""
    row = report.systems[-1]
    assert row.comparison is not None
    query_id = list(row.comparison.differences)[-1]
    detail = row.details[query_id]
    print_line("\nThis is the query that the fast expander helped most.")
    print_line("The report also shows the queries that it harmed most.\n")
    print_line(_fold_paragraph("query", detail.query))
    for label, hits in (("before", detail.hits_before), ("after", detail.hits_after)):
        print_line(_fold_paragraph(label, ", ".join(hit.doc_id + (" *" if hit.grade else "") for hit in hits)))
    print_line(_fold_paragraph("", "(* judged relevant)"))
    print_line(_fold_paragraph("expansion", searched.expansions.get(query_id, "")))
    print_line(_fold_paragraph("rewrite", json.dumps(_cut_long_lists(json.loads(searched.bodies[query_id])))))


def _cut_long_lists(value: Any) -> Any:
    """Shorten the long lists of a JSON value for a human reader."""
    if isinstance(value, dict):
        return {key: _cut_long_lists(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    hidden_count = len(value) - _SHOWN_LIST_ITEMS
    note = [f"{hidden_count} more"] if hidden_count > 0 else []
    return [_cut_long_lists(item) for item in value[:_SHOWN_LIST_ITEMS]] + note


def _fold_paragraph(label: str, text: str) -> str:
    """Return a labelled paragraph of at most 80 columns."""
    return textwrap.fill(text, 78, initial_indent=f"  {label:<10} ", subsequent_indent=" " * 13, break_on_hyphens=False)


def _explain_verdicts(report: Report) -> str:
    """Return sentences that say what the table means."""
    verdicts = {row.comparison.verdict for row in report.systems if row.comparison is not None and row.was_tried}
    if not verdicts:
        return "No query was expanded, so nothing was measured."
    if verdicts & {"helps", "harms"}:
        return (
            "A p below 0.05 is a difference beyond chance.\nSwitch expansion on only where that difference is a gain."
        )
    return "No p is below 0.05, so nothing is proven on this index.\nExpansion would stay off here."


def make_report_path() -> Path:
    """Return the default path of the report, in a new folder that outlives the demo."""
    return Path(tempfile.mkdtemp(prefix="querylift-demo-")) / "report.html"
