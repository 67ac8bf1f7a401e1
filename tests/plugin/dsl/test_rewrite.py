"""The rewrite, case by case from tests/data/dsl, and in general.

A case is `name`, `body` (or `raw`, `raw_hex`, `raw_repeat` for bytes that are no such body), what differs from the usual
in `policy`, `params` and `expansion`, and either `expected`, the whole rewritten body, or `skip`, the reason. `nest` puts
that many bools around the query and `fill` so many numbers into a list, in the body and in what is expected.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from querylift.plugin import dsl
from querylift.plugin.broker import Answer
from querylift.plugin.dsl.rewrite import UNKNOWN_FIELDS
from querylift.plugin.dsl.skip import REASONS, Skip
from querylift.plugin.expansion import Expansion
from querylift.plugin.flow import ExpansionRules, Search, run_flow, search_flow
from querylift.plugin.outcome import Outcome
from querylift.plugin.policy import Policy
from querylift.plugin.settings import parse_settings
from querylift.plugin.testing import ManualClock, remove_expansion
from tests.helpers.paths import TEST_DATA

FOLDER = TEST_DATA / "dsl"
EXPANSION = {"text": "myocardial infarction"}
Case = dict[str, Any]
Body = dict[str, Any]


def _cases() -> dict[str, Case]:
    cases = [
        (path.stem, case) for path in sorted(FOLDER.glob("*.json")) for case in json.loads(path.read_text("utf-8"))
    ]
    return {f"{stem}: {case['name']}": case for stem, case in cases}


CASES = _cases()
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def _raw(case: Case) -> bytes:
    if "raw" in case:
        return bytes(case["raw"], "utf-8")
    if "raw_hex" in case:
        return bytes.fromhex(case["raw_hex"])
    if "raw_repeat" in case:
        part = {"head": "", "middle": "", "close": "", "tail": ""} | case["raw_repeat"]
        repeated = part["unit"] * part["times"] + part["middle"] + part["close"] * part["times"]
        return bytes(part["head"] + repeated + part["tail"], "utf-8")
    return json.dumps(_grown(case["body"], case)).encode()


def _grown(body: Body, case: Case) -> Body:
    for _ in range(case.get("nest", 0)):
        body = body | {"query": {"bool": {"must": [body["query"]]}}}
    if "fill" in case:
        body = copy.deepcopy(body)
        place: Any = body
        for key in case["fill"]["at"]:
            place = place[key]
        place.extend(range(case["fill"]["numbers"]))
    return body


def _policy(case: Case) -> Policy:
    given = case.get("policy", {})
    return Policy(**given | {"fields": tuple(given.get("fields", ()))})


def _rewritten(case: Case) -> Body:
    """What the case comes to. On the way: nothing given is changed, and undoing it gives the original."""
    raw = _raw(case)
    body, before = dsl.parse_body(raw), dsl.parse_body(raw)
    policy = _policy(case)
    found = dsl.find_user_query(body, policy, dsl.UrlParameters(**case.get("params", {})))
    out = dsl.add_expansion(body, found, Expansion.from_json(case.get("expansion", EXPANSION)), policy)
    assert body == before
    assert remove_expansion(out, found, keep_highlight_query=_has_highlight_query(body)) == before
    written: Body = json.loads(dsl.dump_body(out))
    return written


def _has_highlight_query(body: Body) -> bool:
    return isinstance(body.get("highlight"), dict) and "highlight_query" in body["highlight"]


@each_case
def test_each_request_becomes_what_its_case_says(case: Case) -> None:
    if "skip" in case:
        with pytest.raises(Skip) as skipped:
            _rewritten(case)
        assert skipped.value.reason == case["skip"]
    else:
        expected = _grown(case["expected"], case)
        assert _rewritten(case) == expected
        assert _types(_rewritten(case)) == _types(expected)  # 1 == 1.0 == True


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _types(item) for key, item in value.items()}
    return [_types(item) for item in value] if isinstance(value, list) else type(value)


def test_the_cases_are_well_formed_and_no_name_comes_twice() -> None:
    known = {"name", "body", "raw", "raw_hex", "raw_repeat", "policy", "params", "expansion", "nest", "fill"}
    files = [json.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.json")]
    assert sum(map(len, files)) == len(CASES) > 120
    for name, case in CASES.items():
        assert len(case.keys() & {"expected", "skip"}) == 1, name
        assert len(case.keys() & {"body", "raw", "raw_hex", "raw_repeat"}) == 1, name
        assert not case.keys() - known - {"expected", "skip"}, name


def test_every_reason_is_reached_by_a_case() -> None:
    assert {case["skip"] for case in CASES.values() if "skip" in case} == set(REASONS)


# -- in general ---------------------------------------------------------------------------------------------------------

slow = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
_MARK = "zzadded"
_WORDS = tuple(f"{_MARK}{i}" for i in range(40))

_junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, "", "heart attack", "_score", "phrase"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["query", "filter", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def _mostly(draw: st.DrawFn, usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> Any:
    """`odd` one time in ten: bodies in which everything is odd are all skipped."""
    return draw(usual if draw(st.integers(0, 9)) < 9 else odd)


def _maybe(options: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return _mostly(st.just({}), options) | options


def _object(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=optional)


_text = _mostly(
    st.just("heart attack"), st.sampled_from(["heart  attack", "stroke", 'a "b"', "heart AND x", ""]) | _junk
)
_field = st.sampled_from(["title", "title^3", "body", "body.english", "b*", "*^2", "c.text"])
_fields = _mostly(st.lists(_field, max_size=3) | _field, _junk)
_options = _object(
    boost=_mostly(st.sampled_from([1, 0.5, 3, 1e-300]), st.sampled_from([0, -1, 1e39, "2", True]) | _junk),
    operator=st.sampled_from(["and", "OR"]) | _junk,
    minimum_should_match=st.sampled_from([1, 2, "75%"]) | _junk,
    type=_mostly(st.sampled_from(["best_fields", "cross_fields"]), st.just("phrase") | _junk),
    analyzer=st.just("english") | _junk,
    tie_breaker=st.just(0.3) | _junk,
    _name=st.just("n"),
)


@st.composite
def _leaves(draw: st.DrawFn) -> Body:
    options = draw(_maybe(_options))
    kind = draw(st.sampled_from(["match", "multi_match", "combined_fields", "query_string", "simple_query_string"]))
    if kind == "match":
        text = draw(_text)
        return {"match": {draw(_field): {"query": text} | options if options else text}}
    return {kind: {"query": draw(_text), "fields": draw(_fields)} | options}


_others = st.sampled_from(
    [
        {"match_phrase": {"body": "heart attack"}},
        {"term": {"tag": "heart attack"}},
        {"neural": {"v": {"query_text": "heart attack", "filter": {"match": {"body": "heart attack"}}}}},
        {"constant_score": {"filter": {"match": {"body": "heart attack"}}}},
        {"some_new_query": {"query": {"match": {"body": "heart attack"}}}},
    ]
)


def _compounds(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    many = _mostly(st.lists(inner, max_size=3), inner)
    occurs = _object(must=many, should=many, filter=many, must_not=many, minimum_should_match=st.sampled_from([1, 2]))
    scored = st.fixed_dictionaries({"query": inner}, optional={"functions": st.just([{"filter": {"term": {"a": 1}}}])})
    hits = st.fixed_dictionaries({"path": st.just("c"), "query": inner}, optional={"inner_hits": _junk})
    return st.one_of(
        st.fixed_dictionaries({"bool": occurs}),
        st.fixed_dictionaries({"dis_max": st.fixed_dictionaries({"queries": many}, optional={"boost": _junk})}),
        st.fixed_dictionaries({"function_score": scored}),
        st.fixed_dictionaries({"nested": hits}),
        st.fixed_dictionaries({"boosting": st.fixed_dictionaries({"positive": inner, "negative": inner})}),
    )


_clauses = st.recursive(_mostly(_leaves(), _others | _junk), _compounds, max_leaves=6)
_retrievers = st.recursive(
    st.fixed_dictionaries({"standard": st.fixed_dictionaries({"query": _clauses}, optional={"filter": _clauses})}),
    lambda inner: st.fixed_dictionaries({"rrf": st.fixed_dictionaries({"retrievers": st.lists(inner, max_size=3)})}),
    max_leaves=3,
)
_hybrids = st.fixed_dictionaries({"hybrid": st.fixed_dictionaries({"queries": st.lists(_clauses, max_size=3)})})
_asides = _object(
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
_bodies = st.builds(
    lambda main, aside, rest: main | aside | rest,
    _mostly(
        st.fixed_dictionaries({"query": _clauses | _hybrids}) | st.fixed_dictionaries({"retriever": _retrievers}),
        _object(),
    ),
    _maybe(_asides),
    _mostly(st.just({}), _object(min_score=_junk, query=_junk)),
)
_policies = st.builds(
    Policy,
    mode=st.sampled_from(["boost", "widen"]),
    weight=st.sampled_from([0.2, 10, 1e-9]),
    fields=_mostly(st.just(()), st.sampled_from([("body",), ("title", "c"), ("nowhere",)])),
    max_clauses=_mostly(st.sampled_from([50, 512]), st.just(1)),
)
_expansions = st.sampled_from(
    [
        Expansion(text=" ".join(_WORDS)),
        Expansion.from_json({"field": "body", "terms": {word: i + 1 for i, word in enumerate(_WORDS)}}),
        Expansion.from_json({"field": "c.text", "terms": {_MARK: 1e-12}}),
    ]
)


def _walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every path and what stands there, in order."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _walk(item, (*path, key))


def _as_text(value: Any) -> str:
    return json.dumps(value)


def _kept_subtrees(body: Body) -> list[str]:
    """What never changes, as it stands in the body, in order; less the highlighting, which may hold a copy of it."""
    names = {"filter", "must_not", "functions", "neural", "constant_score", "boosting", "inner_hits"}
    inside = {key: value for key, value in body.items() if key in ("query", "retriever")}
    return [_as_text(value) for path, value in _walk(inside) if path and path[-1] in names]


def _added(out: Body) -> list[tuple[tuple[Any, ...], str]]:
    """Where words of the expansion stand. A copy of the original query, which has none, is no exception."""
    return [(path, value) for path, value in _walk(out) if isinstance(value, str) and _MARK in value]


def _clauses_of(out: Body, path: tuple[Any, ...], words: str) -> int:
    """How many clauses the words at `path` become: words x fields, a pattern or none counting as many."""
    options: Any = out
    for key in path[:-1]:
        options = options[key]
    if "match" in path[-3:] or "term" in path[-3:]:
        return len(words.split())
    fields = options.get("fields", ["*"])
    return len(words.split()) * sum(UNKNOWN_FIELDS if "*" in field else 1 for field in fields)


@slow
@given(_bodies, _policies, _expansions)
@example({"query": {"match": {"body": "heart attack"}}}, Policy(), Expansion(text=_WORDS[0]))
def test_a_rewrite_adds_and_nothing_else(body: Body, policy: Policy, expansion: Expansion) -> None:
    before = _as_text(body)
    try:
        found = dsl.find_user_query(body, policy)
        out = dsl.add_expansion(body, found, expansion, policy)
    except Skip as skip:
        assert skip.reason in REASONS
        assert _as_text(body) == before
        return
    assert _as_text(body) == before
    assert _as_text(remove_expansion(out, found, keep_highlight_query=_has_highlight_query(body))) == before
    assert json.loads(dsl.dump_body(out)) == out
    _check_untouched(body, out)
    _check_added(out, policy)


def _check_untouched(body: Body, out: Body) -> None:
    """Everything beside the query, and every filter inside it, byte for byte."""
    assert list(out) == list(body)
    for key in body.keys() - {"query", "retriever", "highlight"}:
        assert _as_text(out[key]) == _as_text(body[key])
    assert _kept_subtrees(out) == _kept_subtrees(body)


def _check_added(out: Body, policy: Policy) -> None:
    """The expansion's words are analysed text or the value of a term: no key, no syntax, no more than allowed."""
    added = _added(out)
    assert added
    for path, _ in added:
        assert not any(_MARK in str(key) for key in path)
        is_text = path[-1] == "query" and ("match" in path[-3:] or path[-2] in ("multi_match", "combined_fields"))
        is_term = path[-1] == "value" and path[-3] == "term"
        assert is_text or is_term, path
    assert sum(_clauses_of(out, path, words) for path, words in added) <= policy.max_clauses


@slow
@given(_bodies, _policies)
def test_a_rewrite_is_the_same_each_time_and_can_be_found_in_no_other(body: Body, policy: Policy) -> None:
    try:
        first = dsl.add_expansion(body, dsl.find_user_query(body, policy), Expansion(text="zz"), policy)
        second = dsl.add_expansion(body, dsl.find_user_query(body, policy), Expansion(text="zz"), policy)
    except Skip:
        return
    assert _as_text(first) == _as_text(second)
    with pytest.raises(Skip):  # the words added are another text: nothing is expanded twice
        dsl.find_user_query(first, policy)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@slow
@given(st.dictionaries(st.text(st.characters(), max_size=4), _json, max_size=4))
def test_reading_and_writing_a_body_loses_nothing(body: Body) -> None:
    written = json.dumps(body).encode()
    assert _as_text(json.loads(dsl.dump_body(dsl.parse_body(written)))) == _as_text(body)


@settings(max_examples=500, deadline=None)
@given(st.from_regex(r"-?(0|[1-9][0-9]{0,22})(\.[0-9]{1,22})?([eE][-+]?[0-9]{1,22})?", fullmatch=True))
@example("-0.0")
@example("0e99999999999999999999")
def test_a_number_is_written_with_its_value_or_the_body_is_left_alone(literal: str) -> None:
    try:
        body = dsl.parse_body(b'{"n":%s}' % literal.encode())
    except Skip as skip:
        assert skip.reason == "number"
        return
    assert Decimal(dsl.dump_body(body)[5:-1].decode()) == Decimal(literal)


def _sent(raw: bytes, policy: Body | None = None) -> tuple[str, bytes | None]:
    rules = ExpansionRules(parse_settings({"index": {"docs": policy or {}}}), clock=ManualClock())
    answer = Answer(Expansion(text=" ".join(_WORDS)), Outcome("expanded"))
    result = run_flow(search_flow(Search("docs", raw), rules), lambda question: answer)
    return result.outcome.format_header(), result.body


@slow
@given(st.binary() | st.text().map(str.encode) | _bodies.map(lambda body: json.dumps(body).encode()))
def test_whatever_comes_in_there_is_an_outcome_and_no_fault(raw: bytes) -> None:
    outcome, sent = _sent(raw)
    assert outcome == "expanded" or outcome.startswith("skipped;")
    assert (sent is None) == (outcome != "expanded")


@slow
@given(_bodies, st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3))
def test_a_damaged_body_is_an_outcome_too(body: Body, at: int, spliced: bytes, lost: int) -> None:
    raw = json.dumps(body).encode()
    outcome, _ = _sent(raw[:at] + spliced + raw[at + lost :])
    assert outcome == "expanded" or outcome.startswith("skipped;")


@pytest.mark.parametrize(
    "case", [case for case in CASES.values() if "raw_repeat" in case], ids=lambda case: case["name"]
)
def test_a_huge_body_is_an_outcome_too(case: Case) -> None:
    assert _sent(_raw(case), case.get("policy"))[0] == f"skipped;{case['skip']}"
