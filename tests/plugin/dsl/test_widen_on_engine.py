"""Widen mode on OpenSearch 3.8 and 2.19: more hits, but only where the search allows them."""

from __future__ import annotations

import pytest

from tests.helpers.engine_index import WIDEN_POLICY, Body, EngineIndex, expand_search, get_hit_ids
from tests.helpers.engine_queries import FILTERS, MATCH_CLAUSE, OTHER_PARTS, QUERIES

pytestmark = pytest.mark.engine


def test_a_widened_search_also_finds_documents_that_match_only_the_expansion(index: EngineIndex) -> None:
    body = {"query": MATCH_CLAUSE, "size": 100}
    original = set(get_hit_ids(index.search(body)))
    rewritten = set(get_hit_ids(index.search(expand_search(body, WIDEN_POLICY))))
    assert original < rewritten
    assert "4" in rewritten - original  # Myocardial infarction and coronary disease


@pytest.mark.parametrize(
    "query",
    [QUERIES["bool.must with filters"], {"bool": {"should": [MATCH_CLAUSE], "minimum_should_match": 1, **FILTERS}}],
)
def test_a_widened_search_lets_no_document_past_a_filter(index: EngineIndex, query: Body) -> None:
    body = {"query": query, "size": 100}
    original, rewritten = index.search(body), index.search(expand_search(body, WIDEN_POLICY))
    assert set(get_hit_ids(original)) < set(get_hit_ids(rewritten))
    assert {hit["_source"]["tag"] for hit in rewritten["hits"]["hits"]} == {"t0", "t1"}
    assert "panic" not in str([hit["_source"]["body"] for hit in rewritten["hits"]["hits"]])


@pytest.mark.parametrize(
    "name",
    ["match, all options", "match, several words must match", "multi_match, cross_fields", "bool.should, two of three"],
)
def test_a_widened_search_keeps_its_hits_when_it_sets_how_many_words_must_match(index: EngineIndex, name: str) -> None:
    body = {"query": QUERIES[name], "size": 100}
    assert set(get_hit_ids(index.search(expand_search(body, WIDEN_POLICY)))) == set(get_hit_ids(index.search(body)))


def test_a_widened_search_with_aggregations_or_groups_keeps_its_hits(index: EngineIndex) -> None:
    for other_part in ({"aggs": OTHER_PARTS["aggs"]}, {"collapse": {"field": "tag"}}):
        body = {"query": MATCH_CLAUSE, "size": 100} | other_part
        original, rewritten = index.search(body), index.search(expand_search(body, WIDEN_POLICY))
        assert rewritten["hits"]["total"] == original["hits"]["total"]
        assert rewritten.get("aggregations") == original.get("aggregations")
