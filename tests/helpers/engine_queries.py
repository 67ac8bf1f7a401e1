"""Queries with every kind of clause that an expansion can go beside."""

from __future__ import annotations

from tests.helpers.engine_index import Body

QUERY_TEXT = "heart attack"
MATCH_CLAUSE = {"match": {"body": QUERY_TEXT}}
FILTERS = {"filter": [{"terms": {"tag": ["t0", "t1"]}}], "must_not": [{"match": {"body": "panic"}}]}
NESTED_CLAUSE = {"nested": {"path": "c", "query": {"match": {"c.text": QUERY_TEXT}}, "score_mode": "max"}}
ALL_TYPES = [
    "title",
    "body^2",
    "tag",
    "missing",
    *(f"a_{t}" for t in "keyword integer date ip boolean double flat_object".split()),
]

QUERIES: dict[str, Body] = {
    "match": MATCH_CLAUSE,
    "match, all options": {
        "match": {
            "body": {
                "query": QUERY_TEXT,
                "operator": "and",
                "fuzziness": "AUTO",
                "analyzer": "english",
                "boost": 2,
                "_name": "n",
            }
        }
    },
    "match, several words must match": {
        "match": {"body": {"query": QUERY_TEXT + " bread", "minimum_should_match": "60%"}}
    },
    "match with a tiny boost": {"match": {"body": {"query": QUERY_TEXT, "boost": 1e-300}}},
    "match with a large boost": {"match": {"body": {"query": QUERY_TEXT, "boost": 1e29}}},
    "multi_match": {"multi_match": {"query": QUERY_TEXT, "fields": ["title^3", "body"], "tie_breaker": 0.3}},
    "multi_match, a field as a string": {"multi_match": {"query": QUERY_TEXT, "fields": "title"}},
    "multi_match, no fields": {"multi_match": {"query": QUERY_TEXT}},
    "multi_match, empty fields": {"multi_match": {"query": QUERY_TEXT, "fields": []}},
    "multi_match, every field": {"multi_match": {"query": QUERY_TEXT, "fields": ["*"]}},
    "multi_match, a pattern": {"multi_match": {"query": QUERY_TEXT, "fields": ["ti*^2", "bo*"]}},
    "multi_match, a boost of 0": {"multi_match": {"query": QUERY_TEXT, "fields": ["title^0", "body"]}},
    "multi_match, most_fields": {
        "multi_match": {"query": QUERY_TEXT, "fields": ["title", "body"], "type": "most_fields"}
    },
    "multi_match, cross_fields": {
        "multi_match": {"query": QUERY_TEXT, "fields": ["title", "body"], "type": "cross_fields", "operator": "and"}
    },
    "multi_match over all types": {"multi_match": {"query": QUERY_TEXT, "fields": ALL_TYPES, "lenient": True}},
    "cross_fields over all types": {
        "multi_match": {"query": QUERY_TEXT, "fields": ALL_TYPES, "lenient": True, "type": "cross_fields"}
    },
    "most_fields over all types": {
        "multi_match": {"query": QUERY_TEXT, "fields": ALL_TYPES, "lenient": True, "type": "most_fields"}
    },
    "combined_fields": {"combined_fields": {"query": QUERY_TEXT, "fields": ["title^2", "body"], "operator": "and"}},
    "query_string": {"query_string": {"query": QUERY_TEXT, "fields": ["title", "body^2"], "default_operator": "and"}},
    "query_string, cross_fields": {
        "query_string": {"query": QUERY_TEXT, "fields": ["title", "body"], "type": "cross_fields"}
    },
    "query_string, default_field": {"query_string": {"query": QUERY_TEXT, "default_field": "body", "boost": 2}},
    "query_string, every field": {"query_string": {"query": QUERY_TEXT, "default_field": "*", "tie_breaker": 0.1}},
    "query_string, no field": {"query_string": {"query": QUERY_TEXT}},
    "simple_query_string": {
        "simple_query_string": {"query": QUERY_TEXT, "fields": ["title", "body"], "default_operator": "and"}
    },
    "simple_query_string, a question": {"simple_query_string": {"query": "a heart attack?", "fields": ["body"]}},
    "bool.must with filters": {"bool": {"must": [MATCH_CLAUSE], **FILTERS}},
    "bool.must without a list": {"bool": {"must": MATCH_CLAUSE, **FILTERS}},
    "bool.should beside a filter": {"bool": {"should": [MATCH_CLAUSE], **FILTERS}},
    "bool.should, two of three": {
        "bool": {
            "should": [MATCH_CLAUSE, {"match": {"title": QUERY_TEXT}}, {"term": {"tag": "t1"}}],
            "minimum_should_match": 2,
        }
    },
    "bool with names": {
        "bool": {
            "should": [
                {"match": {"body": {"query": QUERY_TEXT, "_name": "in body"}}},
                {"match": {"title": {"query": QUERY_TEXT, "_name": "in title"}}},
            ],
            "_name": "any",
        }
    },
    "phrase beside a match": {
        "bool": {"must": [MATCH_CLAUSE], "should": [{"match_phrase": {"body": {"query": QUERY_TEXT, "boost": 5}}}]}
    },
    "clauses of other kinds beside a match": {
        "bool": {
            "must": [MATCH_CLAUSE],
            "should": [
                {"distance_feature": {"field": "a_date", "origin": "2021-01-01", "pivot": "7d"}},
                {"more_like_this": {"fields": ["body"], "like": QUERY_TEXT, "min_term_freq": 1}},
                {"constant_score": {"filter": {"match": {"title": QUERY_TEXT}}, "boost": 2}},
            ],
        }
    },
    "dis_max": {
        "dis_max": {
            "queries": [{"match": {"title": {"query": QUERY_TEXT, "boost": 3}}}, MATCH_CLAUSE],
            "tie_breaker": 0.7,
        }
    },
    "dis_max with a filter inside": {
        "dis_max": {"queries": [{"match": {"title": QUERY_TEXT}}, {"bool": {"must": [MATCH_CLAUSE], **FILTERS}}]}
    },
    "function_score": {
        "function_score": {
            "query": MATCH_CLAUSE,
            "functions": [
                {"filter": {"term": {"tag": "t1"}}, "weight": 3},
                {"field_value_factor": {"field": "a_integer"}},
            ],
            "boost_mode": "multiply",
        }
    },
    "boosting": {
        "boosting": {"positive": MATCH_CLAUSE, "negative": {"match": {"title": "panic"}}, "negative_boost": 0.5}
    },
    "script_score": {"script_score": {"query": MATCH_CLAUSE, "script": {"source": "_score * doc['a_integer'].value"}}},
    "query_string, escaped": {
        "query_string": {"query": "\\(heart\\-attack\\) what is it\\?", "fields": ["title", "body"]}
    },
    "simple_query_string, one mark of inches": {
        "simple_query_string": {"query": '5" heart attack', "fields": ["title", "body"]}
    },
    "nested": NESTED_CLAUSE,
    "nested with inner hits": {"nested": NESTED_CLAUSE["nested"] | {"inner_hits": {"size": 5}}},
    "nested in a bool": {"bool": {"should": [MATCH_CLAUSE, NESTED_CLAUSE], **FILTERS}},
}

OTHER_PARTS: Body = {
    "size": 100,
    "aggs": {
        "tags": {"terms": {"field": "tag"}},
        "sum": {"sum": {"field": "a_integer"}},
        "who": {"filter": {"match": {"title": QUERY_TEXT}}},
    },
    "highlight": {"fields": {"title": {}, "body": {"number_of_fragments": 0}, "c.text": {}}},
}
"""Aggregations and highlighting that go with a query."""
