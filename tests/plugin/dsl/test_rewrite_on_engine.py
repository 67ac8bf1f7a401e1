"""What the rewrite promises, kept by the engines themselves: OpenSearch 3.8 and 2.19."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from querylift.plugin import dsl
from querylift.plugin.dsl.skip import Skip
from querylift.plugin.dsl.user_query import MAX_DEPTH
from querylift.plugin.expansion import MAX_WORDS, Expansion
from querylift.plugin.policy import Policy
from tests.helpers.paths import TEST_DATA

pytestmark = pytest.mark.engine

Body = dict[str, Any]
ADDED = Expansion(text="myocardial infarction coronary 42 10.0.0.1 2020-01-01 true")
WIDEN = Policy(mode="widen")
WIDE = [f"wide.f{i}" for i in range(40)]


class Index:
    """One index of 40 documents on one engine."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        self.version = str(self.call("GET", "/")[1]["version"]["number"])

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer. A list goes as ndjson."""
        text = "".join(json.dumps(line) + "\n" for line in body) if isinstance(body, list) else json.dumps(body)
        kind = "application/x-ndjson" if isinstance(body, list) else "application/json"
        self._connection.request(method, path, None if body is None else text.encode(), {"Content-Type": kind})
        reply = self._connection.getresponse()
        return reply.status, json.loads(reply.read())

    def try_search(self, body: Body, **params: str) -> tuple[int, Any]:
        """Status and answer of a search."""
        return self.call("POST", "/dsl/_search?" + urlencode(params), body)

    def search(self, body: Body, **params: str) -> Body:
        """The answer of a search, which has to be one without a failed shard."""
        status, answer = self.try_search(body, **params)
        assert status == 200, json.dumps(answer)[:600]
        assert answer["_shards"]["failed"] == 0
        return dict(answer)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@pytest.fixture(scope="module", params=["opensearch", "opensearch2"])
def index(request: pytest.FixtureRequest) -> Iterator[Index]:
    """The index on each engine in turn."""
    made = Index(request.getfixturevalue(request.param))
    made.call("DELETE", "/dsl")
    status, answer = made.call("PUT", "/dsl", {"settings": {"number_of_replicas": 0}, "mappings": _mappings()})
    assert status == 200, answer
    lines = [line for i in range(40) for line in ({"index": {"_id": str(i)}}, _document(i))]
    assert not made.call("POST", "/dsl/_bulk?refresh=true", lines)[1]["errors"]
    yield made
    made.call("DELETE", "/dsl")
    made.close()


def _mappings() -> Body:
    english = {"type": "text", "analyzer": "english"}
    types = "keyword integer date ip boolean long double geo_point integer_range date_range binary flat_object"
    comments = {"type": "nested", "properties": {"text": english, "t": english, "who": {"type": "keyword"}}}
    of_type = {f"a_{name}": {"type": name} for name in types.split()}
    fields = {"title": english, "body": english, "notes": english, "tag": {"type": "keyword"}, "c": comments}
    wide = {name.removeprefix("wide."): {"type": "text"} for name in WIDE}
    return {"properties": of_type | fields | {"wide": {"properties": wide}}}


_SENTENCES = (
    "A heart attack needs help at once",
    "Myocardial infarction is what doctors call a heart attack",
    "Coronary arteries feed the heart",
    "A panic attack may feel like one",
    "Myocardial infarction and coronary disease",
    "Bread is baked from flour",
    "The heart of the matter",
    "A surprise attack at dawn",
)


def _document(i: int) -> Body:
    """Documents that say both words, one, neither, or what the expansion says; 42 and 10.0.0.1 are in it as values."""
    sentence, other = _SENTENCES[i % 8], _SENTENCES[(i * 3 + 1) % 8]
    values = {
        "a_long": i,
        "a_keyword": sentence,
        "a_integer": 42 + i % 3,
        "a_date": "2020-01-01",
        "a_ip": "10.0.0.1",
        "a_boolean": True,
    }
    comments = [{"text": other, "t": sentence, "who": f"w{i % 3}"}, {"text": sentence, "t": other, "who": "w9"}]
    text = {"title": other, "body": f"{sentence}. " * (1 + i % 3) + "filler " * (i % 5), "notes": sentence}
    return values | text | {"tag": f"t{i % 4}", "c": comments, "wide": dict.fromkeys(("f0", "f39"), sentence)}


def _expanded(body: Body, policy: Policy | None = None, expansion: Expansion = ADDED) -> Body:
    policy = policy or Policy()
    out: Body = json.loads(dsl.dump_body(dsl.add_expansion(body, dsl.find_user_query(body, policy), expansion, policy)))
    assert out != body
    return out


def _ids(answer: Body) -> list[str]:
    return [hit["_id"] for hit in answer["hits"]["hits"]]


def _scores(answer: Body) -> dict[str, float]:
    return {hit["_id"]: hit["_score"] for hit in answer["hits"]["hits"]}


def _per_hit(answer: Body, key: str) -> dict[str, Any]:
    return {hit["_id"]: hit.get(key) for hit in answer["hits"]["hits"]}


# -- boost mode: the same hits ------------------------------------------------------------------------------------------

TEXT = "heart attack"
MATCH = {"match": {"body": TEXT}}
FILTERS = {"filter": [{"terms": {"tag": ["t0", "t1"]}}], "must_not": [{"match": {"body": "panic"}}]}
NESTED = {"nested": {"path": "c", "query": {"match": {"c.text": TEXT}}, "score_mode": "max"}}
ALL_TYPES = [
    "title",
    "body^2",
    "tag",
    "missing",
    *(f"a_{t}" for t in "keyword integer date ip boolean double flat_object".split()),
]

QUERIES: dict[str, Body] = {
    "match": MATCH,
    "match, all options": {
        "match": {
            "body": {
                "query": TEXT,
                "operator": "and",
                "fuzziness": "AUTO",
                "analyzer": "english",
                "boost": 2,
                "_name": "n",
            }
        }
    },
    "match, several words must match": {"match": {"body": {"query": TEXT + " bread", "minimum_should_match": "60%"}}},
    "match with a tiny boost": {"match": {"body": {"query": TEXT, "boost": 1e-300}}},
    "match with a large boost": {"match": {"body": {"query": TEXT, "boost": 1e29}}},
    "multi_match": {"multi_match": {"query": TEXT, "fields": ["title^3", "body"], "tie_breaker": 0.3}},
    "multi_match, a field as a string": {"multi_match": {"query": TEXT, "fields": "title"}},
    "multi_match, no fields": {"multi_match": {"query": TEXT}},
    "multi_match, empty fields": {"multi_match": {"query": TEXT, "fields": []}},
    "multi_match, every field": {"multi_match": {"query": TEXT, "fields": ["*"]}},
    "multi_match, a pattern": {"multi_match": {"query": TEXT, "fields": ["ti*^2", "bo*"]}},
    "multi_match, a boost of 0": {"multi_match": {"query": TEXT, "fields": ["title^0", "body"]}},
    "multi_match, most_fields": {"multi_match": {"query": TEXT, "fields": ["title", "body"], "type": "most_fields"}},
    "multi_match, cross_fields": {
        "multi_match": {"query": TEXT, "fields": ["title", "body"], "type": "cross_fields", "operator": "and"}
    },
    "multi_match over all types": {"multi_match": {"query": TEXT, "fields": ALL_TYPES, "lenient": True}},
    "cross_fields over all types": {
        "multi_match": {"query": TEXT, "fields": ALL_TYPES, "lenient": True, "type": "cross_fields"}
    },
    "most_fields over all types": {
        "multi_match": {"query": TEXT, "fields": ALL_TYPES, "lenient": True, "type": "most_fields"}
    },
    "combined_fields": {"combined_fields": {"query": TEXT, "fields": ["title^2", "body"], "operator": "and"}},
    "query_string": {"query_string": {"query": TEXT, "fields": ["title", "body^2"], "default_operator": "and"}},
    "query_string, cross_fields": {
        "query_string": {"query": TEXT, "fields": ["title", "body"], "type": "cross_fields"}
    },
    "query_string, default_field": {"query_string": {"query": TEXT, "default_field": "body", "boost": 2}},
    "query_string, every field": {"query_string": {"query": TEXT, "default_field": "*", "tie_breaker": 0.1}},
    "query_string, no field": {"query_string": {"query": TEXT}},
    "simple_query_string": {
        "simple_query_string": {"query": TEXT, "fields": ["title", "body"], "default_operator": "and"}
    },
    "simple_query_string, a question": {"simple_query_string": {"query": "a heart attack?", "fields": ["body"]}},
    "bool.must with filters": {"bool": {"must": [MATCH], **FILTERS}},
    "bool.must without a list": {"bool": {"must": MATCH, **FILTERS}},
    "bool.should beside a filter": {"bool": {"should": [MATCH], **FILTERS}},
    "bool.should, two of three": {
        "bool": {"should": [MATCH, {"match": {"title": TEXT}}, {"term": {"tag": "t1"}}], "minimum_should_match": 2}
    },
    "bool with names": {
        "bool": {
            "should": [
                {"match": {"body": {"query": TEXT, "_name": "in body"}}},
                {"match": {"title": {"query": TEXT, "_name": "in title"}}},
            ],
            "_name": "any",
        }
    },
    "phrase beside a match": {
        "bool": {"must": [MATCH], "should": [{"match_phrase": {"body": {"query": TEXT, "boost": 5}}}]}
    },
    "clauses of other kinds beside a match": {
        "bool": {
            "must": [MATCH],
            "should": [
                {"distance_feature": {"field": "a_date", "origin": "2021-01-01", "pivot": "7d"}},
                {"more_like_this": {"fields": ["body"], "like": TEXT, "min_term_freq": 1}},
                {"constant_score": {"filter": {"match": {"title": TEXT}}, "boost": 2}},
            ],
        }
    },
    "dis_max": {"dis_max": {"queries": [{"match": {"title": {"query": TEXT, "boost": 3}}}, MATCH], "tie_breaker": 0.7}},
    "dis_max with a filter inside": {
        "dis_max": {"queries": [{"match": {"title": TEXT}}, {"bool": {"must": [MATCH], **FILTERS}}]}
    },
    "function_score": {
        "function_score": {
            "query": MATCH,
            "functions": [
                {"filter": {"term": {"tag": "t1"}}, "weight": 3},
                {"field_value_factor": {"field": "a_integer"}},
            ],
            "boost_mode": "multiply",
        }
    },
    "nested": NESTED,
    "nested with inner hits": {"nested": NESTED["nested"] | {"inner_hits": {"size": 5}}},
    "nested in a bool": {"bool": {"should": [MATCH, NESTED], **FILTERS}},
}
each_query = pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())

ASIDE: Body = {
    "size": 100,
    "aggs": {
        "tags": {"terms": {"field": "tag"}},
        "sum": {"sum": {"field": "a_integer"}},
        "who": {"filter": {"match": {"title": TEXT}}},
    },
    "highlight": {"fields": {"title": {}, "body": {"number_of_fragments": 0}, "c.text": {}}},
}


def _skip_where_unknown(index: Index, query: Body) -> None:
    if "combined_fields" in query and index.version.startswith("2."):
        status, answer = index.try_search({"query": query})
        assert (status, answer["error"]["reason"]) == (400, "unknown query [combined_fields]")
        pytest.skip("OpenSearch 2.19 has no combined_fields")


@each_query
def test_in_boost_mode_every_kind_of_clause_keeps_its_hits_aggregations_names_and_highlights(
    index: Index, query: Body
) -> None:
    _skip_where_unknown(index, query)
    body = {"query": query} | ASIDE
    before, after = index.search(body), index.search(_expanded(body))
    assert after["hits"]["total"] == before["hits"]["total"]
    assert set(_ids(after)) == set(_ids(before)) != set()
    assert after["aggregations"] == before["aggregations"]
    assert _per_hit(after, "highlight") == _per_hit(before, "highlight")
    assert _per_hit(after, "matched_queries") == _per_hit(before, "matched_queries")


@each_query
def test_the_expansion_adds_to_scores_and_takes_from_none(index: Index, query: Body) -> None:
    _skip_where_unknown(index, query)
    body = {"query": query, "size": 100}
    before, after = _scores(index.search(body)), _scores(index.search(_expanded(body)))
    assert all(after[hit] >= before[hit] * 0.999 for hit in before)
    assert any(after[hit] > before[hit] for hit in before) or query is QUERIES["match with a tiny boost"]


@each_query
def test_terms_instead_of_text_keep_the_hits_too(index: Index, query: Body) -> None:
    _skip_where_unknown(index, query)
    body = {"query": query} | ASIDE
    named = dsl.find_user_query(body, Policy()).fields
    field = named[0] if named and "*" not in named[0] else "body"
    terms = Expansion.from_json({"field": field, "terms": {"infarct": 2.0, "myocardi": 1.5, "coronari": 0.5}})
    before, after = index.search(body), index.search(_expanded(body, expansion=terms))
    assert set(_ids(after)) == set(_ids(before))
    assert after["aggregations"] == before["aggregations"]
    assert _per_hit(after, "highlight") == _per_hit(before, "highlight")
    assert _scores(after) != _scores(before) or query is QUERIES["match with a tiny boost"]


FOLDER = TEST_DATA / "dsl"
CASES = [case for path in sorted(FOLDER.glob("*.json")) for case in json.loads(path.read_text("utf-8"))]


def test_every_case_that_the_engine_takes_it_takes_expanded(index: Index) -> None:
    """In boost mode with the same hits, in widen mode with none fewer. Refused originals (retrievers, faults) are passed by."""
    taken = 0
    for case in CASES:
        if "expected" not in case or "body" not in case or "nest" in case:
            continue
        params = case.get("params", {})
        status, before = index.try_search(case["body"], **params)
        if status != 200:
            continue
        after = index.search(case["expected"], **params)
        more = after["hits"]["total"]["value"] - before["hits"]["total"]["value"]
        assert more >= 0 if case.get("policy", {}).get("mode") == "widen" else more == 0, case["name"]
        taken += 1
    assert taken > 180


# -- highlighting and hits inside hits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unified", "plain"])
def test_both_highlighters_show_what_they_showed(index: Index, kind: str) -> None:
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
        before, after = index.search(body), index.search(_expanded(body))
        assert _per_hit(after, "highlight") == _per_hit(before, "highlight"), name
        assert "[" in str(_per_hit(after, "highlight")), name


def test_without_our_highlight_query_the_added_words_would_be_shown(index: Index) -> None:
    body = {"query": MATCH, "size": 100, "highlight": {"fields": {"body": {}}}}
    without = _expanded(body) | {"highlight": body["highlight"]}
    assert "<em>infarction</em>" in str(_per_hit(index.search(without), "highlight"))


def test_inner_hits_are_the_same_ones(index: Index) -> None:
    body = {"query": QUERIES["nested with inner hits"], "size": 100, "highlight": {"fields": {"c.text": {}}}}
    before, after = index.search(body), index.search(_expanded(body))
    assert _inner(after) == _inner(before)


def _inner(answer: Body) -> dict[str, set[int]]:
    inner = _per_hit(answer, "inner_hits")
    return {hit: {i["_nested"]["offset"] for i in found["c"]["hits"]["hits"]} for hit, found in inner.items()}


# -- widen mode ---------------------------------------------------------------------------------------------------------


def test_widened_a_search_finds_documents_of_the_expansion_alone(index: Index) -> None:
    body = {"query": MATCH, "size": 100}
    before, after = set(_ids(index.search(body))), set(_ids(index.search(_expanded(body, WIDEN))))
    assert before < after
    assert "4" in after - before  # Myocardial infarction and coronary disease


@pytest.mark.parametrize(
    "query", [QUERIES["bool.must with filters"], {"bool": {"should": [MATCH], "minimum_should_match": 1, **FILTERS}}]
)
def test_widened_it_lets_no_document_past_a_filter(index: Index, query: Body) -> None:
    body = {"query": query, "size": 100}
    before, after = index.search(body), index.search(_expanded(body, WIDEN))
    assert set(_ids(before)) < set(_ids(after))
    assert {hit["_source"]["tag"] for hit in after["hits"]["hits"]} == {"t0", "t1"}
    assert "panic" not in str([hit["_source"]["body"] for hit in after["hits"]["hits"]])


@pytest.mark.parametrize(
    "name",
    ["match, all options", "match, several words must match", "multi_match, cross_fields", "bool.should, two of three"],
)
def test_widened_a_search_that_says_how_much_must_match_keeps_its_hits(index: Index, name: str) -> None:
    body = {"query": QUERIES[name], "size": 100}
    assert set(_ids(index.search(_expanded(body, WIDEN)))) == set(_ids(index.search(body)))


def test_widened_aggregations_and_groups_keep_their_hits(index: Index) -> None:
    for aside in ({"aggs": ASIDE["aggs"]}, {"collapse": {"field": "tag"}}):
        body = {"query": MATCH, "size": 100} | aside
        before, after = index.search(body), index.search(_expanded(body, WIDEN))
        assert after["hits"]["total"] == before["hits"]["total"]
        assert after.get("aggregations") == before.get("aggregations")


# -- what goes with a search --------------------------------------------------------------------------------------------


def test_collapse_rescore_post_filter_and_suggest_are_accepted_and_mean_what_they_meant(index: Index) -> None:
    rescore = {
        "window_size": 20,
        "query": {"rescore_query": {"match_phrase": {"body": TEXT}}, "rescore_query_weight": 3},
    }
    body = {
        "query": MATCH,
        "size": 100,
        "rescore": rescore,
        "post_filter": {"term": {"tag": "t1"}},
        "suggest": {"text": "hart attak", "s": {"term": {"field": "body"}}},
    }
    before, after = index.search(body), index.search(_expanded(body))
    assert set(_ids(after)) == set(_ids(before)) != set()
    assert after["suggest"] == before["suggest"]
    collapsed = {"query": MATCH, "collapse": {"field": "tag", "inner_hits": {"name": "i", "size": 2}}}
    assert _tags(index.search(_expanded(collapsed))) == _tags(index.search(collapsed)) != set()


def _tags(answer: Body) -> set[str]:
    return {hit["fields"]["tag"][0] for hit in answer["hits"]["hits"]}


@pytest.mark.parametrize("policy", [Policy(), WIDEN], ids=["boost", "widen"])
def test_pages_by_search_after_agree_with_one_long_page(index: Index, policy: Policy) -> None:
    body: Body = {"query": MATCH, "sort": ["_score", {"a_long": "asc"}]}
    whole = _ids(index.search(_expanded(body | {"size": 100}, policy)))
    seen: list[str] = []
    page = index.search(_expanded(body | {"size": 7}, policy))
    while page["hits"]["hits"]:
        seen += _ids(page)
        after = page["hits"]["hits"][-1]["sort"]
        page = index.search(_expanded(body | {"size": 7, "search_after": after}, policy))
    assert seen == whole
    assert len(whole) == len(set(whole)) > 14


def test_a_scroll_gives_every_hit_once(index: Index) -> None:
    body = {"query": MATCH, "size": 9}
    page = index.search(_expanded(body), scroll="1m")
    seen: list[str] = []
    while page["hits"]["hits"]:
        seen += _ids(page)
        _, page = index.call("POST", "/_search/scroll", {"scroll": "1m", "scroll_id": page["_scroll_id"]})
    index.call("DELETE", "/_search/scroll", {"scroll_id": page["_scroll_id"]})
    assert sorted(seen) == sorted(_ids(index.search(body | {"size": 100})))


def test_a_search_on_a_point_in_time_is_accepted(index: Index) -> None:
    _, opened = index.call("POST", "/dsl/_search/point_in_time?keep_alive=1m")
    body = {"query": MATCH, "size": 100, "pit": {"id": opened["pit_id"], "keep_alive": "1m"}}
    status, answer = index.call("POST", "/_search", _expanded(body))
    index.call("DELETE", "/_search/point_in_time", {"pit_id": [opened["pit_id"]]})
    assert status == 200
    assert set(_ids(answer)) == set(_ids(index.search({"query": MATCH, "size": 100})))


# -- types and limits ---------------------------------------------------------------------------------------------------

TYPES = "keyword integer date ip boolean long double geo_point integer_range date_range binary flat_object".split()


@pytest.mark.parametrize("kind", TYPES)
def test_words_for_a_field_of_any_type_are_no_error_since_the_expansion_is_lenient(index: Index, kind: str) -> None:
    for name in (f"a_{kind}", "_id", "_index", "missing"):
        body = {"query": {"match": {name: {"query": TEXT, "lenient": True}}}}
        index.search(_expanded(body))
    index.search(_expanded({"query": {"match": {"a_date": {"query": "now"}}}}))


def test_the_expansion_adds_values_to_no_hits_of_other_types(index: Index) -> None:
    """The expansion holds 42, 10.0.0.1 and 2020-01-01: as one text over such a field they are no value."""
    body = {"query": QUERIES["multi_match over all types"], "size": 100}
    assert set(_ids(index.search(_expanded(body)))) == set(_ids(index.search(body)))


COMPOUNDS: dict[str, Any] = {
    "bool": lambda query: {"bool": {"must": [query]}},
    "dis_max": lambda query: {"dis_max": {"queries": [query]}},
    "function_score": lambda query: {"function_score": {"query": query}},
}


def _nested_in(kind: str, depth: int) -> Body:
    query: Body = {"dis_max": {"queries": [MATCH, {"match": {"title": TEXT}}]}}
    for _ in range(depth):
        query = COMPOUNDS[kind](query)
    return {"query": query, "size": 100, "highlight": {"fields": {"body": {}}}}


@pytest.mark.parametrize("kind", COMPOUNDS)
def test_the_deepest_query_that_is_expanded_is_accepted_in_both_modes(index: Index, kind: str) -> None:
    body = _nested_in(kind, MAX_DEPTH - 1)
    for policy in (Policy(), WIDEN):
        assert set(_ids(index.search(_expanded(body, policy)))) >= set(_ids(index.search(body)))


@pytest.mark.parametrize("kind", COMPOUNDS)
def test_one_that_only_the_engine_takes_goes_there_as_it_came(index: Index, kind: str) -> None:
    body = _nested_in(kind, 100)
    index.search(body)
    with pytest.raises(Skip) as skipped:
        dsl.find_user_query(body, Policy())
    assert skipped.value.reason == "too-deep"


LONG = Expansion(text=" ".join(f"word{i}" for i in range(MAX_WORDS)))
CHINESE = Expansion(text=" ".join("".join(chr(0x4E00 + 40 * i + j) for j in range(40)) for i in range(MAX_WORDS)))
MANY_WORDS = " ".join(f"typed{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60))


@pytest.mark.parametrize("expansion", [LONG, CHINESE], ids=["128 words", "128 runs of 40 Chinese signs"])
@pytest.mark.parametrize("fields", [WIDE, WIDE[:8], WIDE[:1]], ids=lambda fields: f"{len(fields)} fields")
def test_the_largest_expansion_stays_within_the_clause_limit(
    index: Index, expansion: Expansion, fields: list[str]
) -> None:
    body = {"query": {"multi_match": {"query": TEXT, "fields": fields, "type": "most_fields"}}}
    try:
        rewritten = _expanded(body, expansion=expansion)
    except Skip as skip:  # not one run of 40 signs fits beside 40 fields
        assert (skip.reason, expansion, len(fields)) == ("too-many-clauses", CHINESE, 40)
    else:
        index.search(rewritten)


@pytest.mark.parametrize("count", [1, 5, 8])
def test_the_users_own_words_count_under_the_limit(index: Index, count: int) -> None:
    body = {"query": {"multi_match": {"query": MANY_WORDS, "fields": WIDE[:count]}}}
    index.search(_expanded(body, expansion=LONG))


def test_the_limit_is_1024_words_x_fields_of_the_whole_query_and_passing_it_is_status_500(index: Index) -> None:
    """Why the user's own words are counted, and what the proxy has to take for a refusal."""
    body = {"query": {"multi_match": {"query": TEXT, "fields": WIDE}}}
    status, answer = index.try_search(_expanded(body, Policy(max_clauses=4096), LONG))
    assert (status, answer["error"]["root_cause"][0]["type"]) == (500, "too_many_nested_clauses")
    words = {"query": " ".join(f"word{i}" for i in range(512)), "fields": WIDE[:2]}
    index.search({"query": {"multi_match": words}})
    words["query"] = f"{words['query']} one"
    assert index.try_search({"query": {"multi_match": words}})[0] == 500
