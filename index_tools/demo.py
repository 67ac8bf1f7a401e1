"""`make demo`: a real engine, the proxy in front of it, one search before and after, and a table.

Nothing is prepared: the node, the index, the proxies and every number are made while it runs, and stopped after.
"""

from __future__ import annotations

import asyncio
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

from querylift.index_tools.corpora.loading import load
from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.experiment import System, Task, outcomes, report
from querylift.index_tools.evaluation.report import Report, write_report
from querylift.index_tools.evaluation.text_table import render_table
from querylift.index_tools.fast_expander.build import Request
from querylift.index_tools.fast_expander.build import build as build_expander
from querylift.index_tools.indexing import FIELD, IndexPlan, build
from querylift.index_tools.node.local_node import is_fetched, temporary_node
from querylift.index_tools.proxy_process import Served, serving
from querylift.index_tools.searching import Searched, search_body, search_over_http
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.folder import ABOUT
from querylift.plugin.files import cache_dir
from querylift.plugin.settings import check

INDEX = "docs"
WEIGHT = 0.2
DEPTH = 100
COLD_QUERIES = 8
_SHOWN = 3
BUDGET_MS = 20_000
"""Long enough that every query is expanded: the demo shows quality first, and the time that it takes beside it."""
FOLDER = "demo-expander"
"""Of the fast expander, in the cache folder: a later demo encodes nothing anew."""

Say = Callable[[str], None]


def demo(out: Path, say: Say) -> Report:
    """Run it all and write the report into `out`. Raises QueryliftError where a part does not come up."""
    started_s = time.monotonic()
    say("starting OpenSearch" if is_fetched() else "fetching OpenSearch (85 MB, once) and starting it: about a minute")
    with temporary_node() as node, Engine(check({"engine": node.url})) as engine:
        say(f"OpenSearch {node.version} at {node.url}")
        corpus = load("builtin")
        count = build(engine, corpus, IndexPlan(INDEX))
        split = next(iter(corpus.splits()))
        task = Task(corpus.name, split, INDEX, corpus.queries(split), corpus.qrels(split))
        say(f"index {INDEX}: {count} documents of the Python documentation, {len(task.queries)} judged questions")
        folder = _expander(engine, say)
        generators = {
            "feedback": "engine feedback (RM3)",
            "llama": "generating model, 135M",
            f"expander:{folder}": "fast expander",
        }
        made = _measured(engine, node.url, task, generators, say)
    write_report(out, made)
    say(f"\n{render_table(made.systems)}\n")
    say(_reading(made))
    say(f"report: {out}\nthe node and the proxies are stopped; {time.monotonic() - started_s:.0f} s in all")
    return made


def _expander(engine: Engine, say: Say) -> Path:
    """The fast expander of the demo's index."""
    folder, started_s = cache_dir() / FOLDER, time.monotonic()
    say(
        "building the fast expander from the index"
        + ("" if (folder / ABOUT).is_file() else ": about half a minute, once")
    )
    request = Request(INDEX, FIELD, folder, threads=os.cpu_count() or 1)
    try:
        built = build_expander(engine, request)
    except SettingsError:  # what an older Querylift left there
        shutil.rmtree(folder)
        built = build_expander(engine, request)
    took_s = time.monotonic() - started_s
    say(f"fast expander: {built.about.terms} terms of {built.about.source.documents} documents, {took_s:.0f} s")
    return folder


def _measured(engine: Engine, url: str, task: Task, generators: Mapping[str, str], say: Say) -> Report:
    direct = asyncio.run(search_over_http(url, task.queries, index=INDEX, depth=DEPTH))
    systems = [_system(generator, name, url, task, say) for generator, name in generators.items()]
    made = report(task, System("no expansion", direct), systems, engine=engine, mode="boost", weight=WEIGHT)
    _show(made, systems[-1].searched, say)
    return made


def _settings(url: str, generator: str, cache: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "engine": url,
        "generator": generator,
        "budget_ms": BUDGET_MS,
        "cache": dict(cache),
        "index": {INDEX: {"mode": "boost", "weight": WEIGHT}},
        "feedback": {"field": FIELD},
        "llama": {"max_seconds": BUDGET_MS / 1000},
    }


def _system(generator: str, name: str, url: str, task: Task, say: Say) -> System:
    """Measure one generator through its proxy: the time of a first search on a few queries, quality on all of them."""
    say(f"measuring: {name}")
    some = dict(list(task.queries.items())[:COLD_QUERIES])
    with serving(_settings(url, generator, {})) as proxy:
        cold_ms = asyncio.run(_added_ms(proxy, some))
        cached_ms = sorted(asyncio.run(_added_ms(proxy, some)))
    # The model's expansions are kept from one demo to the next; those of the engine belong to this index.
    kept = {"file": str(cache_dir() / "demo-expansions.db")} if generator == "llama" else {}
    with serving(_settings(url, generator, kept)) as proxy:
        asyncio.run(_warm(proxy, task.queries))
        searched = asyncio.run(search_over_http(proxy.url, task.queries, index=INDEX, depth=DEPTH))
        explained = {q: _explained(proxy, search_body(text)) for q, text in task.queries.items()}
    say(f"{name}: {outcomes(searched)}; once cached, {cached_ms[len(cached_ms) // 2]:+.1f} ms a search (median)")
    words = {q: Expansion.from_json(e["expansion"]).words() for q, e in explained.items() if e["expansion"]}
    bodies = {q: json.dumps(e["body"]["query"]).encode() for q, e in explained.items()}
    return System(name, Searched(searched.run, searched.outcomes, words, bodies), cold_ms)


async def _added_ms(proxy: Served, queries: Mapping[str, str]) -> list[float]:
    """Per query: the time through the proxy, less that of the same search with expansion switched off."""
    through = await search_over_http(proxy.url, queries, index=INDEX, depth=10)
    plain = await search_over_http(proxy.url, queries, index=INDEX, depth=10, headers={"X-Querylift": "off"})
    return [through.took_ms[q] - plain.took_ms[q] for q in queries]


async def _warm(proxy: Served, queries: Mapping[str, str]) -> None:
    """Send every query once, several at a time, so that the worker's batch is full."""
    ids = list(queries)
    parts = [{q: queries[q] for q in ids[start::COLD_QUERIES]} for start in range(COLD_QUERIES)]
    await asyncio.gather(*(search_over_http(proxy.url, part, index=INDEX, depth=1) for part in parts if part))


def _show(made: Report, searched: Searched, say: Say) -> None:
    """The question that the fast expander helped most: first hits before and after, the expansion, the clause that was sent."""
    row = made.systems[-1]
    assert row.comparison is not None
    query_id = list(row.comparison.differences)[-1]
    detail = row.details[query_id]
    say(
        f'\nThe question that the fast expander helped most (those it harmed most are in the report):\n\n  "{detail.query}"\n'
    )
    for label, hits in (("before", detail.hits_before), ("after", detail.hits_after)):
        say(_folded(label, ", ".join(hit.doc_id + (" *" if hit.grade else "") for hit in hits)))
    say(_folded("", "(* judged to answer it)"))
    say(_folded("expansion", searched.expansions.get(query_id, "")))
    say(_folded("sent", json.dumps(_shortened(json.loads(searched.bodies[query_id])))))


def _shortened(value: Any) -> Any:
    """JSON with long lists cut, for a person to read."""
    if isinstance(value, dict):
        return {key: _shortened(inner) for key, inner in value.items()}
    if not isinstance(value, list):
        return value
    more = [f"{len(value) - _SHOWN} more"] if len(value) > _SHOWN else []
    return [_shortened(inner) for inner in value[:_SHOWN]] + more


def _folded(label: str, text: str) -> str:
    """A labelled paragraph within 80 columns."""
    return textwrap.fill(text, 78, initial_indent=f"  {label:<10} ", subsequent_indent=" " * 13, break_on_hyphens=False)


def _explained(proxy: Served, body: bytes) -> dict[str, Any]:
    request = urllib.request.Request(f"{proxy.admin_url}/_querylift/explain?index={INDEX}", data=body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def _reading(made: Report) -> str:
    """What the table says, in a sentence."""
    verdicts = {row.comparison.verdict for row in made.systems if row.comparison is not None}
    if verdicts & {"helps", "harms"}:
        return "p below 0.05 is a difference beyond chance: serve expansion only where it is one for the better."
    return "No p is below 0.05: nothing is proven on this index, so expansion would stay off here."


def report_path() -> Path:
    """Where the report goes when nobody says: a folder of its own that outlives the demo."""
    return Path(tempfile.mkdtemp(prefix="querylift-demo-")) / "report.html"
