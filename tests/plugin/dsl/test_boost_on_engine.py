"""Boost mode on OpenSearch 3.8 and 2.19: the hits and everything about them stay, and only scores change."""

from __future__ import annotations

import json

import pytest

from querylift.plugin import dsl
from querylift.plugin.expansion import Expansion
from querylift.plugin.policy import Policy
from tests.helpers.engine_index import (
    Body,
    EngineIndex,
    expand_search,
    get_hit_ids,
    get_per_hit,
    get_scores,
    skip_if_unknown_query,
)
from tests.helpers.engine_queries import MATCH_CLAUSE, OTHER_PARTS, QUERIES
from tests.helpers.paths import TEST_DATA

pytestmark = pytest.mark.engine

each_query = pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())


@each_query
def test_boost_mode_keeps_hits_aggregations_names_and_highlights_of_every_clause(
    index: EngineIndex, query: Body
) -> None:
    skip_if_unknown_query(index, query)
    body = {"query": query} | OTHER_PARTS
    original, rewritten = index.search(body), index.search(expand_search(body))
    assert rewritten["hits"]["total"] == original["hits"]["total"]
    assert set(get_hit_ids(rewritten)) == set(get_hit_ids(original)) != set()
    assert rewritten["aggregations"] == original["aggregations"]
    assert get_per_hit(rewritten, "highlight") == get_per_hit(original, "highlight")
    assert get_per_hit(rewritten, "matched_queries") == get_per_hit(original, "matched_queries")


@each_query
def test_an_expansion_raises_scores_and_lowers_none(index: EngineIndex, query: Body) -> None:
    skip_if_unknown_query(index, query)
    body = {"query": query, "size": 100}
    original, rewritten = get_scores(index.search(body)), get_scores(index.search(expand_search(body)))
    assert all(rewritten[hit] >= original[hit] * 0.999 for hit in original)
    assert any(rewritten[hit] > original[hit] for hit in original) or query is QUERIES["match with a tiny boost"]


@each_query
def test_an_expansion_of_terms_keeps_the_hits_too(index: EngineIndex, query: Body) -> None:
    skip_if_unknown_query(index, query)
    body = {"query": query} | OTHER_PARTS
    fields = dsl.find_user_query(body, Policy()).fields
    field = fields[0] if fields and "*" not in fields[0] else "body"
    terms = Expansion.from_json({"field": field, "terms": {"infarct": 2.0, "myocardi": 1.5, "coronari": 0.5}})
    original, rewritten = index.search(body), index.search(expand_search(body, expansion=terms))
    assert set(get_hit_ids(rewritten)) == set(get_hit_ids(original))
    assert rewritten["aggregations"] == original["aggregations"]
    assert get_per_hit(rewritten, "highlight") == get_per_hit(original, "highlight")
    assert get_scores(rewritten) != get_scores(original) or query is QUERIES["match with a tiny boost"]


FOLDER = TEST_DATA / "dsl"
CASES = [case for path in sorted(FOLDER.glob("*.json")) for case in json.loads(path.read_text("utf-8"))]


def test_the_engine_accepts_the_rewrite_of_every_case_that_it_accepts(index: EngineIndex) -> None:
    """Boost mode keeps the hits, and widen mode loses none. Cases that the engine refuses in the original are left out."""
    accepted_cases = 0
    for case in CASES:
        if "expected" not in case or "body" not in case or "nest" in case:
            continue
        params = case.get("params", {})
        status, original = index.try_search(case["body"], **params)
        if status != 200:
            continue
        rewritten = index.search(case["expected"], **params)
        added_hits = rewritten["hits"]["total"]["value"] - original["hits"]["total"]["value"]
        assert added_hits >= 0 if case.get("policy", {}).get("mode") == "widen" else added_hits == 0, case["name"]
        accepted_cases += 1
    assert accepted_cases > 180


@pytest.mark.parametrize("kind", ["unified", "plain"])
def test_both_highlighters_highlight_the_same_words(index: EngineIndex, kind: str) -> None:
    for name in (
        "match",
        "bool.should beside a filter",
        "function_score",
        "nested",
        "dis_max",
        "query_string",
        "bool with names",
    ):
        highlight = {"type": kind, "require_field_match": False, "fields": {"*": {}}, "pre_tags": "[", "post_tags": "]"}
        body = {"query": QUERIES[name], "size": 100, "highlight": highlight}
        original, rewritten = index.search(body), index.search(expand_search(body))
        assert get_per_hit(rewritten, "highlight") == get_per_hit(original, "highlight"), name
        assert "[" in str(get_per_hit(rewritten, "highlight")), name


def test_without_the_added_highlight_query_expansion_words_would_be_highlighted(index: EngineIndex) -> None:
    body = {"query": MATCH_CLAUSE, "size": 100, "highlight": {"fields": {"body": {}}}}
    without_highlight_query = expand_search(body) | {"highlight": body["highlight"]}
    assert "<em>infarction</em>" in str(get_per_hit(index.search(without_highlight_query), "highlight"))


def test_inner_hits_stay_the_same(index: EngineIndex) -> None:
    body = {"query": QUERIES["nested with inner hits"], "size": 100, "highlight": {"fields": {"c.text": {}}}}
    original, rewritten = index.search(body), index.search(expand_search(body))
    assert _get_inner_offsets(rewritten) == _get_inner_offsets(original)


def _get_inner_offsets(answer: Body) -> dict[str, set[int]]:
    inner_hits = get_per_hit(answer, "inner_hits")
    return {
        hit_id: {hit["_nested"]["offset"] for hit in inner["c"]["hits"]["hits"]} for hit_id, inner in inner_hits.items()
    }
