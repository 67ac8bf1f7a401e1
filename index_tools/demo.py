"""`make demo`: a real engine, the proxy in front of it, one search before and after, and a table.

Nothing is prepared: the node, the index, the proxies and every number are made while it runs, and stopped after.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from index_tools.corpora import load
from index_tools.engine import Engine
from index_tools.experiment import System, Task, outcomes, report
from index_tools.indexing import FIELD, IndexPlan, build
from index_tools.node import temporary_node
from index_tools.report import Report, write_report
from index_tools.searching import Searched, search_body, search_over_http
from index_tools.served import Served, serving
from index_tools.table import render_table
from plugin.settings import check

INDEX = "docs"
WEIGHT = 0.2
EXAMPLE = "q001"
"""The first question: it is shown before and after, whatever came of it."""
COLD_QUERIES = 8
BUDGET_MS = 20_000
"""Long enough that every query is expanded: the demo shows quality first, and the time that it takes beside it."""
GENERATORS = {"feedback": "engine feedback (RM3)", "llama": "embedded model (untrained)"}

Say = Callable[[str], None]


def demo(out: Path, say: Say) -> Report:
    """Run it all and write the report into `out`. Raises QueryliftError where a part does not come up."""
    started_s = time.monotonic()
    with temporary_node() as node, Engine(check({"engine": node.url})) as engine:
        say(f"OpenSearch {node.version} at {node.url}")
        corpus = load("builtin")
        count = build(engine, corpus, IndexPlan(INDEX))
        split = next(iter(corpus.splits()))
        task = Task(corpus.name, split, INDEX, corpus.queries(split), corpus.qrels(split))
        say(f"index {INDEX}: {count} documents of the Python documentation, {len(task.queries)} judged questions")
        made = _measured(engine, node.url, task, say)
    write_report(out, made)
    say(f"\n{render_table(made.systems)}\n")
    say(_reading(made))
    say(f"report: {out}\nthe node and the proxies are stopped; {time.monotonic() - started_s:.0f} s in all")
    return made


def _measured(engine: Engine, url: str, task: Task, say: Say) -> Report:
    direct = asyncio.run(search_over_http(url, task.queries, index=INDEX))
    systems = []
    for generator, name in GENERATORS.items():
        with serving(_settings(url, generator)) as proxy:
            if generator == "llama":
                _show(proxy, url, task, say)
            systems.append(_system(name, proxy, task, say))
    baseline = System("no expansion", direct)
    return report(task, baseline, systems, engine=engine, mode="boost", weight=WEIGHT)


def _settings(url: str, generator: str) -> dict[str, Any]:
    return {
        "engine": url,
        "generator": generator,
        "budget_ms": BUDGET_MS,
        "index": {INDEX: {"mode": "boost", "weight": WEIGHT}},
        "feedback": {"field": FIELD},
        "llama": {"max_seconds": BUDGET_MS / 1000},
    }


def _system(name: str, proxy: Served, task: Task, say: Say) -> System:
    """Measure one generator through its proxy: the time of a first search on a few queries, quality on all of them."""
    some = dict(list(task.queries.items())[1 : COLD_QUERIES + 1])
    cold = asyncio.run(_added_ms(proxy, some))
    asyncio.run(_warm(proxy, task.queries))
    searched = asyncio.run(search_over_http(proxy.url, task.queries, index=INDEX))
    cached = sorted(asyncio.run(_added_ms(proxy, some)))
    say(f"{name}: {outcomes(searched)}; once cached a search takes {cached[len(cached) // 2]:.1f} ms more (median)")
    explained = {q: _explained(proxy, search_body(text)) for q, text in task.queries.items()}
    words = {q: _words(e.get("expansion")) for q, e in explained.items()}
    return System(name, Searched(searched.run, searched.outcomes, words), cold)


async def _added_ms(proxy: Served, queries: Mapping[str, str]) -> list[float]:
    """Per query: the time through the proxy, less that of the same search with expansion switched off."""
    through = await search_over_http(proxy.url, queries, index=INDEX)
    plain = await search_over_http(proxy.url, queries, index=INDEX, headers={"X-Querylift": "off"})
    return [through.took_ms[q] - plain.took_ms[q] for q in queries]


async def _warm(proxy: Served, queries: Mapping[str, str]) -> None:
    """Send every query once, several at a time, so that the worker's batch is full."""
    ids = list(queries)
    parts = [{q: queries[q] for q in ids[start::COLD_QUERIES]} for start in range(COLD_QUERIES)]
    await asyncio.gather(*(search_over_http(proxy.url, part, index=INDEX, depth=10) for part in parts if part))


def _show(proxy: Served, url: str, task: Task, say: Say) -> None:
    """One search to the engine and through the proxy: the first hits, the expansion, the clause."""
    text = task.queries[EXAMPLE]
    explained = _explained(proxy, search_body(text, depth=3))
    before = asyncio.run(search_over_http(url, {EXAMPLE: text}, index=INDEX, depth=3))
    after = asyncio.run(search_over_http(proxy.url, {EXAMPLE: text}, index=INDEX, depth=3))
    say(f'\n"{text}"')
    say(f"  engine:    {', '.join(before.run[EXAMPLE])}")
    say(f"  proxy:     {', '.join(after.run[EXAMPLE])}")
    say(f"  expansion: {_words(explained.get('expansion'))}")
    say(f"  sent:      {json.dumps(explained['body']['query'])}\n")


def _explained(proxy: Served, body: bytes) -> dict[str, Any]:
    request = urllib.request.Request(f"{proxy.admin_url}/_querylift/explain?index={INDEX}", data=body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def _words(expansion: Any) -> str:
    if not isinstance(expansion, dict):
        return ""
    return str(expansion.get("text") or " ".join(expansion.get("terms", {})))


def _reading(made: Report) -> str:
    """What the table says, in a sentence."""
    p_values = [row.comparison.p_value for row in made.systems[1:] if row.comparison is not None]
    if min(p_values) < 0.05:
        return "p below 0.05 is a difference beyond chance; serve expansion only where it is one for the better."
    return "No p is below 0.05: on this index nothing is proven, and querylift would leave expansion off."


def report_path() -> Path:
    """Where the report goes when nobody says: a folder of its own that outlives the demo."""
    return Path(tempfile.mkdtemp(prefix="querylift-demo-")) / "report.html"
