"""Other parts of a search on OpenSearch 3.8 and 2.19: rescoring, grouping, paging, scrolls and points in time."""

from __future__ import annotations

import pytest

from querylift.plugin.policy import Policy
from tests.helpers.engine_index import WIDEN_POLICY, Body, EngineIndex, expand_search, get_hit_ids
from tests.helpers.engine_queries import MATCH_CLAUSE, QUERY_TEXT

pytestmark = pytest.mark.engine


def test_collapse_rescore_post_filter_and_suggest_work_as_before(index: EngineIndex) -> None:
    rescore = {
        "window_size": 20,
        "query": {"rescore_query": {"match_phrase": {"body": QUERY_TEXT}}, "rescore_query_weight": 3},
    }
    body = {
        "query": MATCH_CLAUSE,
        "size": 100,
        "rescore": rescore,
        "post_filter": {"term": {"tag": "t1"}},
        "suggest": {"text": "hart attak", "s": {"term": {"field": "body"}}},
    }
    original, rewritten = index.search(body), index.search(expand_search(body))
    assert set(get_hit_ids(rewritten)) == set(get_hit_ids(original)) != set()
    assert rewritten["suggest"] == original["suggest"]
    collapsed = {"query": MATCH_CLAUSE, "collapse": {"field": "tag", "inner_hits": {"name": "i", "size": 2}}}
    assert _get_tags(index.search(expand_search(collapsed))) == _get_tags(index.search(collapsed)) != set()


def _get_tags(answer: Body) -> set[str]:
    return {hit["fields"]["tag"][0] for hit in answer["hits"]["hits"]}


@pytest.mark.parametrize("policy", [Policy(), WIDEN_POLICY], ids=["boost", "widen"])
def test_pages_by_search_after_agree_with_one_long_page(index: EngineIndex, policy: Policy) -> None:
    body: Body = {"query": MATCH_CLAUSE, "sort": ["_score", {"a_long": "asc"}]}
    all_hits = get_hit_ids(index.search(expand_search(body | {"size": 100}, policy)))
    paged_hits: list[str] = []
    page = index.search(expand_search(body | {"size": 7}, policy))
    while page["hits"]["hits"]:
        paged_hits += get_hit_ids(page)
        last_sort_values = page["hits"]["hits"][-1]["sort"]
        page = index.search(expand_search(body | {"size": 7, "search_after": last_sort_values}, policy))
    assert paged_hits == all_hits
    assert len(all_hits) == len(set(all_hits)) > 14


def test_a_scroll_gives_every_hit_once(index: EngineIndex) -> None:
    body = {"query": MATCH_CLAUSE, "size": 9}
    page = index.search(expand_search(body), scroll="1m")
    paged_hits: list[str] = []
    while page["hits"]["hits"]:
        paged_hits += get_hit_ids(page)
        _, page = index.call("POST", "/_search/scroll", {"scroll": "1m", "scroll_id": page["_scroll_id"]})
    index.call("DELETE", "/_search/scroll", {"scroll_id": page["_scroll_id"]})
    assert sorted(paged_hits) == sorted(get_hit_ids(index.search(body | {"size": 100})))


def test_a_search_on_a_point_in_time_is_accepted(index: EngineIndex) -> None:
    _, point_in_time = index.call("POST", "/dsl/_search/point_in_time?keep_alive=1m")
    body = {"query": MATCH_CLAUSE, "size": 100, "pit": {"id": point_in_time["pit_id"], "keep_alive": "1m"}}
    status, answer = index.call("POST", "/_search", expand_search(body))
    index.call("DELETE", "/_search/point_in_time", {"pit_id": [point_in_time["pit_id"]]})
    assert status == 200
    assert set(get_hit_ids(answer)) == set(get_hit_ids(index.search({"query": MATCH_CLAUSE, "size": 100})))
