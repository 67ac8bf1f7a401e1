"""What holds for every rewrite, and for every body that comes in."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from querylift.plugin import dsl
from querylift.plugin.expansion import Expansion
from querylift.plugin.outcome import BODY_REASONS, Skip
from querylift.plugin.policy import Policy
from querylift.plugin.testing import remove_expansion
from tests.helpers.rewrite_checks import (
    assert_only_words_are_added,
    assert_rest_is_unchanged,
    has_highlight_query,
    run_search,
    to_ordered_json,
    walk_json,
)
from tests.helpers.search_bodies import DOCUMENTS, EXPANSION_WORDS, Body, expansions, policies, search_bodies, slow

pytestmark = pytest.mark.no_cover  # thousands of drawn bodies: counting lines doubles the time


@slow
@given(search_bodies, policies, expansions)
@example({"query": {"match": {"body": "heart attack"}}}, Policy(), Expansion(text=EXPANSION_WORDS[0]))
def test_a_rewrite_only_adds(body: Body, policy: Policy, expansion: Expansion) -> None:
    original = to_ordered_json(body)
    try:
        user_query = dsl.find_user_query(body, policy)
        rewrite = dsl.rewrite_search(body, user_query, expansion, policy)
    except Skip as skip:
        assert skip.reason in BODY_REASONS
        assert to_ordered_json(body) == original
        return
    assert to_ordered_json(body) == original
    rewritten = rewrite.body
    restored = remove_expansion(
        rewritten,
        user_query,
        document_path=rewrite.document_path,
        keep_highlight_query=has_highlight_query(body),
    )
    assert to_ordered_json(restored) == original
    assert json.loads(dsl.dump_body(rewritten)) == rewritten
    assert_rest_is_unchanged(body, rewritten)
    assert_only_words_are_added(rewritten, policy)


@slow
@given(search_bodies, policies)
def test_documents_are_added_once_and_never_below_a_filter(body: Body, policy: Policy) -> None:
    expansion = Expansion.from_json({"text": "zz", "documents": DOCUMENTS})
    try:
        rewrite = dsl.rewrite_search(body, dsl.find_user_query(body, policy), expansion, policy)
    except Skip:
        return
    paths = [path for path, value in walk_json(rewrite.body) if isinstance(value, str) and value in DOCUMENTS]
    assert len(paths) <= min(policy.documents, len(DOCUMENTS))
    assert len(paths) == len({tuple(path) for path in paths})
    assert all({"filter", "must_not", "nested", "negative"}.isdisjoint(path) for path in paths)


@slow
@given(search_bodies, policies)
def test_a_rewrite_is_the_same_each_time_and_is_not_rewritten_again(body: Body, policy: Policy) -> None:
    try:
        rewritten = dsl.add_expansion(body, dsl.find_user_query(body, policy), Expansion(text="zz"), policy)
        rewritten_again = dsl.add_expansion(body, dsl.find_user_query(body, policy), Expansion(text="zz"), policy)
    except Skip:
        return
    assert to_ordered_json(rewritten) == to_ordered_json(rewritten_again)
    with pytest.raises(Skip):  # the added words are another text, so nothing is expanded twice
        dsl.find_user_query(rewritten, policy)


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
    raw = json.dumps(body).encode()
    assert to_ordered_json(json.loads(dsl.dump_body(dsl.parse_body(raw)))) == to_ordered_json(body)


@settings(max_examples=500, deadline=None)
@given(st.from_regex(r"-?(0|[1-9][0-9]{0,22})(\.[0-9]{1,22})?([eE][-+]?[0-9]{1,22})?", fullmatch=True))
@example("-0.0")
@example("99999999999999.9")
@example("0.00000000000001")
@example("0.12345678901234")
@example("0.123456789012345678")
@example("0e99999999999999999999")
def test_a_number_is_written_exactly_or_the_body_is_skipped(literal: str) -> None:
    try:
        body = dsl.parse_body(b'{"n":%s}' % literal.encode())
    except Skip as skip:
        assert skip.reason == "number"
        return
    assert Decimal(dsl.dump_body(body)[5:-1].decode()) == Decimal(literal)


@slow
@given(st.binary() | st.text().map(str.encode) | search_bodies.map(lambda body: json.dumps(body).encode()))
def test_every_body_is_expanded_or_skipped_and_never_an_error(raw: bytes) -> None:
    outcome, rewritten = run_search(raw)
    assert outcome == "expanded" or outcome.startswith("skipped;")
    assert (rewritten is None) == (outcome != "expanded")


@slow
@given(search_bodies, st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3))
def test_a_damaged_body_is_expanded_or_skipped_and_never_an_error(
    body: Body, position: int, inserted: bytes, removed_bytes: int
) -> None:
    raw = json.dumps(body).encode()
    outcome, _ = run_search(raw[:position] + inserted + raw[position + removed_bytes :])
    assert outcome == "expanded" or outcome.startswith("skipped;")
