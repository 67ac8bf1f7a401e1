"""The README's claims about real collections hold on a real engine, through a real proxy."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.comparison import compare_runs
from querylift.index_tools.evaluation.measures import evaluate_run
from querylift.index_tools.indexing import IndexPlan, build_index
from querylift.index_tools.proxy_process import run_proxy
from querylift.index_tools.searching import SearchedRun, expand_all, search_offline, search_over_http
from querylift.plugin.broker import open_broker
from querylift.plugin.flow import ExpansionRules
from querylift.plugin.generators import factory
from querylift.plugin.generators.table import build_table_rows as table_rows
from querylift.plugin.settings import parse_settings
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
    with Engine(parse_settings({"engine": opensearch})) as client:
        yield client


def _index_corpus(engine: Engine, name: str) -> Corpus:
    corpus = load_corpus(str(SHARED_DATA / name))
    build_index(engine, corpus, IndexPlan(f"data-{name}"))
    return corpus


def _write_table(tmp_path: Path, source: str, **where: str) -> str:
    import json

    rows = list(
        table_rows(SHARED_DATA / "expansions" / source, where={k.replace("__", "."): v for k, v in where.items()})
    )
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"table:{path}"


def _search_both_ways(
    engine: Engine, queries: dict[str, str], index: str, table: str
) -> tuple[SearchedRun, SearchedRun]:
    values = {"engine": engine.url, "generator": table, "budget_ms": 5000, "index": {index: {"weight": 0.2}}}
    settings = parse_settings(values)

    async def search_without_proxy() -> SearchedRun:
        async with open_broker(settings, factory.make_generator(table, settings)) as broker:
            rules = ExpansionRules(settings, clock=ManualClock())
            results = await expand_all(queries, index=index, rules=rules, broker=broker)
        return search_offline(engine, queries, index=index, results=results)

    with run_proxy(values) as proxy:
        proxy_run = asyncio.run(search_over_http(proxy.url, queries, index=index))
    return asyncio.run(search_without_proxy()), proxy_run


def test_a_72b_teachers_table_lifts_dl19_through_the_proxy_as_the_readme_says(engine: Engine, tmp_path: Path) -> None:
    corpus = _index_corpus(engine, "trec_dl")
    queries, qrels = corpus.read_queries("dl19"), corpus.read_qrels("dl19")
    where = {"method": "query2doc", "params__mode": "zs", "model": "Qwen2.5-72B-Instruct"}
    table = _write_table(tmp_path, "trec_dl19.jsonl.gz", **where)
    offline_run, proxy_run = _search_both_ways(engine, queries, "data-trec_dl", table)
    assert proxy_run.run == offline_run.run
    plain = evaluate_run(search_offline(engine, queries, index="data-trec_dl").run, qrels)
    expanded = evaluate_run(proxy_run.run, qrels)
    assert plain.means["ndcg_at_10"] == pytest.approx(0.443, abs=0.005)
    assert expanded.means["ndcg_at_10"] >= 0.66
    assert compare_runs(plain.per_query["ndcg_at_10"], expanded.per_query["ndcg_at_10"]).p_value < 0.001


def test_the_best_teachers_table_lifts_scifact_and_both_ways_order_alike(engine: Engine, tmp_path: Path) -> None:
    corpus = _index_corpus(engine, "scifact")
    queries, qrels = corpus.read_queries("dev"), corpus.read_qrels("dev")
    table = _write_table(tmp_path, "scifact.jsonl.gz", method="lamer", model="gpt-4.1")
    offline_run, proxy_run = _search_both_ways(engine, queries, "data-scifact", table)
    assert proxy_run.run == offline_run.run
    plain = evaluate_run(search_offline(engine, queries, index="data-scifact").run, qrels)
    assert plain.means["ndcg_at_10"] == pytest.approx(0.671, abs=0.005)
    assert evaluate_run(proxy_run.run, qrels).means["ndcg_at_10"] >= 0.71
