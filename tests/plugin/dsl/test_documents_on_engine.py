"""Documents of an expansion on OpenSearch 3.8 and 2.19: they change scores, and let nobody see more than before."""

from __future__ import annotations

import pytest

from querylift.plugin.expansion import Expansion
from querylift.plugin.policy import Policy
from tests.helpers.engine_index import (
    WIDEN_POLICY,
    Body,
    EngineIndex,
    expand_search,
    get_hit_ids,
    get_per_hit,
    get_scores,
    skip_if_unknown_query,
)
from tests.helpers.engine_queries import FILTERS, MATCH_CLAUSE, OTHER_PARTS, QUERIES

pytestmark = pytest.mark.engine

DOCUMENTS = Expansion.from_json({"documents": {"5": 6.0, "8": 5.0, "0": 4.0, "13": 3.0, "29": 2.0}})
"""Document 5 is about bread, and so is 13; the others hold words of the query."""
each_query = pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())


@each_query
def test_documents_keep_hits_aggregations_names_and_highlights_of_every_clause(index: EngineIndex, query: Body) -> None:
    skip_if_unknown_query(index, query)
    body = {"query": query} | OTHER_PARTS
    original, rewritten = index.search(body), index.search(expand_search(body, expansion=DOCUMENTS))
    assert rewritten["hits"]["total"] == original["hits"]["total"]
    assert set(get_hit_ids(rewritten)) == set(get_hit_ids(original)) != set()
    assert rewritten["aggregations"] == original["aggregations"]
    assert get_per_hit(rewritten, "highlight") == get_per_hit(original, "highlight")
    assert get_per_hit(rewritten, "matched_queries") == get_per_hit(original, "matched_queries")


@each_query
def test_documents_raise_their_own_scores_and_no_others(index: EngineIndex, query: Body) -> None:
    skip_if_unknown_query(index, query)
    body = {"query": query, "size": 100}
    original = get_scores(index.search(body))
    rewritten = get_scores(index.search(expand_search(body, expansion=DOCUMENTS)))
    raised = {hit for hit in original if rewritten[hit] > original[hit] * 1.0001}
    assert raised <= {"5", "8", "0", "13", "29"}
    assert raised or query is QUERIES["match with a tiny boost"]
    assert all(rewritten[hit] >= original[hit] * 0.9999 for hit in original)


def test_a_near_document_comes_first_where_it_matches_and_stays_out_where_it_does_not(index: EngineIndex) -> None:
    body = {"query": MATCH_CLAUSE, "size": 100}
    boosted = get_hit_ids(index.search(expand_search(body, Policy(document_weight=10), DOCUMENTS)))
    assert boosted[0] in {"8", "0"}
    assert "5" not in boosted


def test_a_widened_search_gets_at_most_the_documents_as_further_hits(index: EngineIndex) -> None:
    body = {"query": MATCH_CLAUSE, "size": 100}
    original = set(get_hit_ids(index.search(body)))
    widened = set(get_hit_ids(index.search(expand_search(body, WIDEN_POLICY, DOCUMENTS))))
    assert widened - original == {"5", "13", "29"} - original
    assert original < widened


@pytest.mark.parametrize(
    "query",
    [
        QUERIES["bool.must with filters"],
        {"bool": {"should": [MATCH_CLAUSE], "minimum_should_match": 1, **FILTERS}},
        {"bool": {"should": [MATCH_CLAUSE, {"match": {"title": "heart attack"}}], **FILTERS}},
        {"dis_max": {"queries": [{"bool": {"must": [MATCH_CLAUSE], **FILTERS}}]}},
    ],
)
def test_a_widened_search_lets_no_document_past_a_filter(index: EngineIndex, query: Body) -> None:
    every_document = Expansion.from_json({"documents": {str(i): 1.0 for i in range(40)}})
    answer = index.search(expand_search({"query": query, "size": 100}, WIDEN_POLICY, every_document))
    assert {hit["_source"]["tag"] for hit in answer["hits"]["hits"]} == {"t0", "t1"}
    assert "panic" not in str([hit["_source"]["body"] for hit in answer["hits"]["hits"]])


def test_a_document_that_an_alias_hides_stays_unseen(index: EngineIndex) -> None:
    alias = {"index": "dsl", "alias": "public", "filter": {"term": {"tag": "t0"}}}
    assert index.call("POST", "/_aliases", {"actions": [{"add": alias}]})[0] == 200
    every_document = Expansion.from_json({"documents": {str(i): 1.0 for i in range(40)}})
    body = expand_search({"query": MATCH_CLAUSE, "size": 100}, WIDEN_POLICY, every_document)
    _, answer = index.call("POST", "/public/_search", body)
    assert {hit["_source"]["tag"] for hit in answer["hits"]["hits"]} == {"t0"}
    assert len(answer["hits"]["hits"]) == 10


def test_documents_that_are_gone_change_nothing(index: EngineIndex) -> None:
    gone = Expansion.from_json({"documents": {"4711": 9.0, 'deleted"/é': 8.0, "x" * 512: 7.0}})
    body = {"query": MATCH_CLAUSE, "size": 100}
    for policy in (Policy(), WIDEN_POLICY):
        assert get_scores(index.search(expand_search(body, policy, gone))) == get_scores(index.search(body))


def test_an_odd_id_and_a_routed_document_are_found(index: EngineIndex) -> None:
    odd_id = 'a/b "c" é漢\\?*'
    lines = [{"index": {"_id": odd_id, "routing": "west"}}, {"body": "flour only"}]
    assert not index.call("POST", "/dsl/_bulk?refresh=true", lines)[1]["errors"]
    body = expand_search({"query": MATCH_CLAUSE}, WIDEN_POLICY, Expansion.from_json({"documents": {odd_id: 99.0}}))
    try:
        assert get_hit_ids(index.search(body))[0] == odd_id
        assert get_hit_ids(index.search(body, routing="west"))[0] == odd_id
    finally:
        index.call("POST", "/dsl/_delete_by_query?refresh=true", {"query": {"ids": {"values": [odd_id]}}})


@pytest.mark.parametrize("policy", [Policy(), WIDEN_POLICY], ids=["boost", "widen"])
def test_pages_add_up_to_the_whole_list(index: EngineIndex, policy: Policy) -> None:
    query = {"query": MATCH_CLAUSE, "track_total_hits": True}
    whole = get_hit_ids(index.search(expand_search(query | {"size": 100}, policy, DOCUMENTS)))
    pages = [index.search(expand_search(query | {"size": 7, "from": start}, policy, DOCUMENTS)) for start in (0, 7, 14)]
    assert [hit for page in pages for hit in get_hit_ids(page)] == whole[:21]
    assert {page["hits"]["total"]["value"] for page in pages} == {len(whole)}
    sort = [{"_score": "desc"}, {"a_long": "asc"}]
    first = index.search(expand_search(query | {"size": 7, "sort": sort}, policy, DOCUMENTS))
    after = first["hits"]["hits"][-1]["sort"]
    second = index.search(expand_search(query | {"size": 7, "sort": sort, "search_after": after}, policy, DOCUMENTS))
    assert len(set(get_hit_ids(first) + get_hit_ids(second))) == 14


def test_groups_and_a_second_ranking_keep_working(index: EngineIndex) -> None:
    collapsed = {"query": MATCH_CLAUSE, "collapse": {"field": "tag"}, "size": 100}
    original, rewritten = index.search(collapsed), index.search(expand_search(collapsed, WIDEN_POLICY, DOCUMENTS))
    assert rewritten["hits"]["total"] == original["hits"]["total"]
    assert len(get_hit_ids(rewritten)) == len(get_hit_ids(original))
    second_ranking = {"window_size": 10, "query": {"rescore_query": {"match": {"title": "attack"}}}}
    rescored = {"query": MATCH_CLAUSE, "rescore": second_ranking, "size": 100}
    answer = index.search(expand_search(rescored, Policy(), DOCUMENTS))
    assert set(get_hit_ids(answer)) == set(get_hit_ids(index.search(rescored)))
