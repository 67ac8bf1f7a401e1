"""Field types, depth and clause limits on OpenSearch 3.8 and 2.19."""

from __future__ import annotations

from typing import Any

import pytest

from querylift.plugin import dsl
from querylift.plugin.dsl.user_query import MAX_DEPTH
from querylift.plugin.expansion import MAX_WORDS, Expansion
from querylift.plugin.outcome import Skip
from querylift.plugin.policy import Policy
from tests.helpers.engine_index import WIDE_FIELDS, WIDEN_POLICY, Body, EngineIndex, expand_search, get_hit_ids
from tests.helpers.engine_queries import MATCH_CLAUSE, QUERIES, QUERY_TEXT

pytestmark = pytest.mark.engine

TYPES = "keyword integer date ip boolean long double geo_point integer_range date_range binary flat_object".split()


@pytest.mark.parametrize("kind", TYPES)
def test_words_for_a_field_of_any_type_cause_no_error_because_the_expansion_is_lenient(
    index: EngineIndex, kind: str
) -> None:
    for name in (f"a_{kind}", "missing"):
        body = {"query": {"match": {name: {"query": QUERY_TEXT, "lenient": True}}}}
        index.search(expand_search(body))
    for name in ("_id", "_index"):  # alone they hold no words
        meta_body: Body = {"query": {"multi_match": {"query": QUERY_TEXT, "fields": [name, "body"], "lenient": True}}}
        index.search(expand_search(meta_body))
    index.search(expand_search({"query": {"match": {"a_date": {"query": "now"}}}}))


def test_values_in_the_expansion_add_no_hits_through_typed_fields(index: EngineIndex) -> None:
    """The expansion holds 42, 10.0.0.1 and 2020-01-01. A typed field sees one long text, and not these values."""
    body = {"query": QUERIES["multi_match over all types"], "size": 100}
    assert set(get_hit_ids(index.search(expand_search(body)))) == set(get_hit_ids(index.search(body)))


COMPOUNDS: dict[str, Any] = {
    "bool": lambda query: {"bool": {"must": [query]}},
    "dis_max": lambda query: {"dis_max": {"queries": [query]}},
    "function_score": lambda query: {"function_score": {"query": query}},
}


def _build_nested_body(kind: str, depth: int) -> Body:
    query: Body = {"dis_max": {"queries": [MATCH_CLAUSE, {"match": {"title": QUERY_TEXT}}]}}
    for _ in range(depth):
        query = COMPOUNDS[kind](query)
    return {"query": query, "size": 100, "highlight": {"fields": {"body": {}}}}


@pytest.mark.parametrize("kind", COMPOUNDS)
def test_the_engine_accepts_the_deepest_rewrite_in_both_modes(index: EngineIndex, kind: str) -> None:
    body = _build_nested_body(kind, MAX_DEPTH - 1)
    for policy in (Policy(), WIDEN_POLICY):
        assert set(get_hit_ids(index.search(expand_search(body, policy)))) >= set(get_hit_ids(index.search(body)))


@pytest.mark.parametrize("kind", COMPOUNDS)
def test_a_deeper_query_is_skipped_although_the_engine_accepts_it(index: EngineIndex, kind: str) -> None:
    body = _build_nested_body(kind, 100)
    index.search(body)
    with pytest.raises(Skip) as skipped:
        dsl.find_user_query(body, Policy())
    assert skipped.value.reason == "too-deep"


LONG = Expansion(text=" ".join(f"word{i}" for i in range(MAX_WORDS)))
CHINESE = Expansion(text=" ".join("".join(chr(0x4E00 + 40 * i + j) for j in range(40)) for i in range(MAX_WORDS)))
MANY_WORDS = " ".join(f"typed{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60))


@pytest.mark.parametrize("expansion", [LONG, CHINESE], ids=["128 words", "128 runs of 40 Chinese signs"])
@pytest.mark.parametrize(
    "fields", [WIDE_FIELDS, WIDE_FIELDS[:8], WIDE_FIELDS[:1]], ids=lambda fields: f"{len(fields)} fields"
)
def test_the_largest_expansion_stays_within_the_clause_limit(
    index: EngineIndex, expansion: Expansion, fields: list[str]
) -> None:
    body = {"query": {"multi_match": {"query": QUERY_TEXT, "fields": fields, "type": "most_fields"}}}
    index.search(expand_search(body, expansion=expansion))


@pytest.mark.parametrize("count", [1, 5, 8])
def test_the_users_own_words_count_towards_the_clause_limit(index: EngineIndex, count: int) -> None:
    body = {"query": {"multi_match": {"query": MANY_WORDS, "fields": WIDE_FIELDS[:count]}}}
    index.search(expand_search(body, expansion=LONG))


def test_more_than_1024_words_times_fields_are_refused_with_status_500(index: EngineIndex) -> None:
    """This limit is why the user's words count, and this status is why the proxy takes 500 for a rejection."""
    body = {"query": {"multi_match": {"query": QUERY_TEXT, "fields": WIDE_FIELDS}}}
    status, answer = index.try_search(expand_search(body, Policy(max_clauses=4096), LONG))
    assert (status, answer["error"]["root_cause"][0]["type"]) == (500, "too_many_nested_clauses")
    words = {"query": " ".join(f"word{i}" for i in range(512)), "fields": WIDE_FIELDS[:2]}
    index.search({"query": {"multi_match": words}})
    words["query"] = f"{words['query']} one"
    assert index.try_search({"query": {"multi_match": words}})[0] == 500
