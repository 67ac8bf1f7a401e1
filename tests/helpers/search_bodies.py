"""Hypothesis strategies for search bodies, policies and expansions."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from querylift.plugin.expansion import Expansion
from querylift.plugin.policy import Policy

Body = dict[str, Any]
slow = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MARK = "zzadded"
"""Every word of an expansion contains it, and no word of a body does."""
EXPANSION_WORDS = tuple(f"{MARK}{i}" for i in range(40))

_junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, "", "heart attack", "_score", "phrase"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["query", "filter", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def _mostly(draw: st.DrawFn, usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> Any:
    """Draw `odd` one time in ten. A body in which everything is odd is always skipped."""
    return draw(usual if draw(st.integers(0, 9)) < 9 else odd)


def _often_empty(options: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return _mostly(st.just({}), options) | options


def _build_object(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=optional)


_text = _mostly(
    st.just("heart attack"),
    st.sampled_from(["heart  attack", "stroke", 'a "b"', "heart AND x", "heart\\-attack", ""]) | _junk,
)
_field = st.sampled_from(["title", "title^3", "body", "body.english", "b*", "*^2", "c.text"])
_fields = _mostly(st.lists(_field, max_size=3) | _field, _junk)
_options = _build_object(
    boost=_mostly(st.sampled_from([1, 0.5, 3, 1e-300]), st.sampled_from([0, -1, 1e39, "2", True]) | _junk),
    operator=st.sampled_from(["and", "OR"]) | _junk,
    minimum_should_match=st.sampled_from([1, 2, "75%"]) | _junk,
    type=_mostly(st.sampled_from(["best_fields", "cross_fields"]), st.just("phrase") | _junk),
    analyzer=st.just("english") | _junk,
    tie_breaker=st.just(0.3) | _junk,
    _name=st.just("n"),
)


@st.composite
def _draw_leaf(draw: st.DrawFn) -> Body:
    options = draw(_often_empty(_options))
    kind = draw(st.sampled_from(["match", "multi_match", "combined_fields", "query_string", "simple_query_string"]))
    if kind == "match":
        text = draw(_text)
        return {"match": {draw(_field): {"query": text} | options if options else text}}
    return {kind: {"query": draw(_text), "fields": draw(_fields)} | options}


_other_clauses = st.sampled_from(
    [
        {"match_phrase": {"body": "heart attack"}},
        {"term": {"tag": "heart attack"}},
        {"neural": {"v": {"query_text": "heart attack", "filter": {"match": {"body": "heart attack"}}}}},
        {"match_phrase": {"title": "stroke"}},
        {"prefix": {"body": "hea"}},
        {"intervals": {"body": {"match": {"query": "heart attack"}}}},
        {"more_like_this": {"like": ["attack", {"_id": "7"}]}},
        {"match": {"lang": "en"}},
        {"constant_score": {"filter": {"match": {"body": "heart attack"}}}},
        {"some_new_query": {"query": {"match": {"body": "heart attack"}}}},
    ]
)


def _build_compounds(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    many = _mostly(st.lists(inner, max_size=3), inner)
    occurs = _build_object(
        must=many, should=many, filter=many, must_not=many, minimum_should_match=st.sampled_from([1, 2])
    )
    scored = st.fixed_dictionaries({"query": inner}, optional={"functions": st.just([{"filter": {"term": {"a": 1}}}])})
    hits = st.fixed_dictionaries({"path": st.just("c"), "query": inner}, optional={"inner_hits": _junk})
    return st.one_of(
        st.fixed_dictionaries({"bool": occurs}),
        st.fixed_dictionaries({"dis_max": st.fixed_dictionaries({"queries": many}, optional={"boost": _junk})}),
        st.fixed_dictionaries({"function_score": scored}),
        st.fixed_dictionaries({"nested": hits}),
        st.fixed_dictionaries({"boosting": st.fixed_dictionaries({"positive": inner, "negative": inner})}),
        st.fixed_dictionaries({"script_score": st.fixed_dictionaries({"query": inner, "script": st.just({})})}),
        st.fixed_dictionaries({"pinned": st.fixed_dictionaries({"organic": inner, "ids": st.just(["7"])})}),
    )


_clauses = st.recursive(_mostly(_draw_leaf(), _other_clauses | _junk), _build_compounds, max_leaves=6)
_retrievers = st.recursive(
    st.fixed_dictionaries({"standard": st.fixed_dictionaries({"query": _clauses}, optional={"filter": _clauses})}),
    lambda inner: st.fixed_dictionaries({"rrf": st.fixed_dictionaries({"retrievers": st.lists(inner, max_size=3)})}),
    max_leaves=3,
)
_hybrids = st.fixed_dictionaries({"hybrid": st.fixed_dictionaries({"queries": st.lists(_clauses, max_size=3)})})
_other_parts = _build_object(
    highlight=st.sampled_from([{"fields": {"body": {}}}, {"highlight_query": {"match_all": {}}}]) | _junk,
    aggs=st.just({"f": {"filter": {"match": {"body": "heart attack"}}}}) | _junk,
    sort=_mostly(st.sampled_from([["_score"], [{"_score": "desc"}, "date"]]), _junk),
    suggest=st.just({"text": "heart attack", "s": {"term": {"field": "body"}}}),
    knn=st.just({"field": "v", "filter": {"match": {"body": "heart attack"}}}),
    rescore=st.just({"query": {"rescore_query": {"match": {"body": "heart attack"}}}}),
    post_filter=_clauses,
    collapse=st.just({"field": "tag"}) | _junk,
    size=_mostly(st.integers(1, 3), _junk),
)
search_bodies = st.builds(
    lambda main_part, other_part, odd_part: main_part | other_part | odd_part,
    _mostly(
        st.fixed_dictionaries({"query": _clauses | _hybrids}) | st.fixed_dictionaries({"retriever": _retrievers}),
        _build_object(),
    ),
    _often_empty(_other_parts),
    _mostly(st.just({}), _build_object(min_score=_junk, query=_junk)),
)
policies = st.builds(
    Policy,
    mode=st.sampled_from(["boost", "widen"]),
    weight=st.sampled_from([0.2, 10, 1e-9]),
    fields=_mostly(st.just(()), st.sampled_from([("body",), ("title", "c"), ("nowhere",)])),
    max_clauses=_mostly(st.sampled_from([50, 512]), st.just(1)),
    documents=_mostly(st.just(200), st.sampled_from([0, 12])),
)
DOCUMENTS = {f'{MARK} {i}/é"': 9.0 - i / 10 for i in range(45)}
"""Weights by document id. The ids are odd on purpose."""
expansions = st.sampled_from(
    [
        Expansion(text=" ".join(EXPANSION_WORDS)),
        Expansion.from_json({"field": "body", "terms": {word: i + 1 for i, word in enumerate(EXPANSION_WORDS)}}),
        Expansion.from_json({"field": "c.text", "terms": {MARK: 1e-12}}),
        Expansion.from_json({"documents": DOCUMENTS}),
        Expansion.from_json({"text": " ".join(EXPANSION_WORDS), "documents": DOCUMENTS}),
        Expansion.from_json({"field": "body", "terms": {MARK: 1.0}, "documents": {MARK: 3.0}}),
    ]
)
