"""What the README claims of real collections, measured anew through a real engine and a real proxy."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from querylift.index_tools.corpora.loading import Corpus, load
from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.comparison import compare
from querylift.index_tools.evaluation.measures import evaluate
from querylift.index_tools.indexing import IndexPlan, build
from querylift.index_tools.proxy_process import serving
from querylift.index_tools.searching import Searched, expand_all, search_offline, search_over_http
from querylift.plugin.flow import Rules
from querylift.plugin.generators import factory
from querylift.plugin.generators.table import build as table_rows
from querylift.plugin.proxy.server import expander_for
from querylift.plugin.settings import check
from querylift.plugin.testing import ManualClock
from tests.helpers.paths import SHARED_DATA

pytestmark = [
    pytest.mark.engine,
    pytest.mark.data,
    pytest.mark.skipif(
        not SHARED_DATA.is_dir(), reason="the retrieval data is not beside the project (../shared/data)"
    ),
]


@pytest.fixture(scope="module")
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(check({"engine": opensearch})) as made:
        yield made


def _indexed(engine: Engine, name: str) -> Corpus:
    corpus = load(str(SHARED_DATA / name))
    build(engine, corpus, IndexPlan(f"data-{name}"))
    return corpus


def _table(tmp_path: Path, source: str, **where: str) -> str:
    import json

    rows = list(
        table_rows(SHARED_DATA / "expansions" / source, where={k.replace("__", "."): v for k, v in where.items()})
    )
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"table:{path}"


def _both_ways(engine: Engine, queries: dict[str, str], index: str, table: str) -> tuple[Searched, Searched]:
    given = {"engine": engine.url, "generator": table, "budget_ms": 5000, "index": {index: {"weight": 0.2}}}
    settings = check(given)

    async def offline() -> Searched:
        async with expander_for(settings, factory.make(table, settings)) as expander:
            rules = Rules(settings, clock=ManualClock())
            results = await expand_all(queries, index=index, rules=rules, expander=expander)
        return search_offline(engine, queries, index=index, results=results)

    with serving(given) as proxy:
        through = asyncio.run(search_over_http(proxy.url, queries, index=index))
    return asyncio.run(offline()), through


def test_a_72b_teachers_table_lifts_dl19_through_the_proxy_as_the_readme_says(engine: Engine, tmp_path: Path) -> None:
    corpus = _indexed(engine, "trec_dl")
    queries, qrels = corpus.queries("dl19"), corpus.qrels("dl19")
    where = {"method": "query2doc", "params__mode": "zs", "model": "Qwen2.5-72B-Instruct"}
    table = _table(tmp_path, "trec_dl19.jsonl.gz", **where)
    offline, through = _both_ways(engine, queries, "data-trec_dl", table)
    assert through.run == offline.run
    plain = evaluate(search_offline(engine, queries, index="data-trec_dl").run, qrels)
    expanded = evaluate(through.run, qrels)
    assert plain.means["ndcg_at_10"] == pytest.approx(0.443, abs=0.005)
    assert expanded.means["ndcg_at_10"] >= 0.66
    assert compare(plain.per_query["ndcg_at_10"], expanded.per_query["ndcg_at_10"]).p_value < 0.001


def test_the_best_teachers_table_lifts_scifact_and_both_ways_order_alike(engine: Engine, tmp_path: Path) -> None:
    corpus = _indexed(engine, "scifact")
    queries, qrels = corpus.queries("dev"), corpus.qrels("dev")
    table = _table(tmp_path, "scifact.jsonl.gz", method="lamer", model="gpt-4.1")
    offline, through = _both_ways(engine, queries, "data-scifact", table)
    assert through.run == offline.run
    plain = evaluate(search_offline(engine, queries, index="data-scifact").run, qrels)
    assert plain.means["ndcg_at_10"] == pytest.approx(0.671, abs=0.005)
    assert evaluate(through.run, qrels).means["ndcg_at_10"] >= 0.71
