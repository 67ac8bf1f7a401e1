"""`querylift evaluate --mode widen` says which searches were served in mode boost all the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from querylift.index_tools.commands.evaluate import evaluate
from querylift.index_tools.engine import Engine
from querylift.plugin.settings import parse_settings

pytestmark = pytest.mark.engine
INDEX = "evaluate-mode"
TEXTS = {"d1": "a heart attack needs help", "d2": "a myocardial infarction", "d3": "a panic attack"}
MATCH = {"match": {"text": "{{query}}"}}


@pytest.fixture(scope="module")
def engine_url(opensearch: str) -> Iterator[str]:
    with Engine(parse_settings({"engine": opensearch})) as engine:
        for doc_id, text in TEXTS.items():
            engine.call("PUT", f"/{INDEX}/_doc/{doc_id}?refresh=true", {"text": text})
        yield opensearch
        engine.call("DELETE", f"/{INDEX}")


def _evaluate(folder: Path, engine_url: str, body: dict[str, Any]) -> tuple[str, str]:
    """Return what a measurement of mode widen prints, and its warnings."""
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "heart attack"}\n{"_id": "q2", "text": "panic"}\n')
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t1\nq2\td3\t1\n")
    (folder / "table.jsonl").write_text('{"query": "heart attack", "text": "myocardial infarction"}\n')
    (folder / "body.json").write_text(json.dumps(body))
    options = ["--mode", "widen", "--generator", f"table:{folder / 'table.jsonl'}", "--body", str(folder / "body.json")]
    result = CliRunner().invoke(evaluate, [str(folder), "--index", INDEX, "--engine", engine_url, *options])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_a_body_with_aggregations_gets_a_warning(tmp_path: Path, engine_url: str) -> None:
    body = {"query": MATCH, "aggs": {"words": {"value_count": {"field": "text.keyword"}}}}
    printed, warnings = _evaluate(tmp_path, engine_url, body)
    assert "1 skipped;nothing: " in printed
    assert "1 expanded;same-hits: " in printed
    assert (
        "warning: 1 of 2 searches measure boost: the search counts or groups its hits, so mode widen was served as boost; "
        "leave aggs and collapse out of the body to measure widen" in warnings
    )


def test_a_body_that_asks_for_all_words_gets_a_warning(tmp_path: Path, engine_url: str) -> None:
    body = {"query": {"match": {"text": {"query": "{{query}}", "operator": "and"}}}}
    printed, warnings = _evaluate(tmp_path, engine_url, body)
    assert "1 expanded;required-words: " in printed
    assert "leave operator and minimum_should_match out of the body to measure widen" in warnings


def test_a_body_that_can_be_widened_gets_none(tmp_path: Path, engine_url: str) -> None:
    printed, warnings = _evaluate(tmp_path, engine_url, {"query": MATCH})
    assert "queries: 1 expanded" in printed
    assert "warning" not in warnings
