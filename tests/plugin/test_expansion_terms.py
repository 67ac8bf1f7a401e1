"""Weighted terms with the words that they are made of: as a record, as JSON, and beside a query."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from querylift.plugin import dsl
from querylift.plugin.cache import decode_expansion, encode_expansion
from querylift.plugin.dsl.skip import Skip
from querylift.plugin.expansion import MAX_TERMS, Expansion, WeightedTerm, expansion_from_terms
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.table import TableGenerator
from querylift.plugin.policy import Policy
from tests.plugin.dsl.test_rewrite import Body, _bodies, _check_added, _check_untouched, _policies, slow

SURFACED = Expansion(
    terms=(WeightedTerm("boat", 2.0, "boats"), WeightedTerm("sail", 1.0), WeightedTerm("müll", 0.5, "Müll")),
    field="body",
)


def test_terms_and_their_words_survive_json_and_the_cache() -> None:
    assert SURFACED.to_json() == {
        "field": "body",
        "terms": {"boat": 2.0, "sail": 1.0, "müll": 0.5},
        "surfaces": {"boat": "boats", "müll": "Müll"},
    }
    assert Expansion.from_json(json.loads(json.dumps(SURFACED.to_json()))) == SURFACED
    assert decode_expansion(encode_expansion(SURFACED)) == SURFACED


def test_terms_without_words_are_written_as_they_always_were() -> None:
    plain = Expansion(terms=(WeightedTerm("boat", 2.0),), field="body")
    assert plain.to_json() == {"field": "body", "terms": {"boat": 2.0}}
    assert Expansion.from_json({"field": "body", "terms": {"boat": 2}, "surfaces": {}}) == plain


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=5), st.floats(1e-6, 1e6), min_size=1, max_size=MAX_TERMS),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)
@example({"a": 1.0}, {"a": "", "b": "c"})
def test_whatever_the_terms_and_their_words_they_survive_json(
    terms: dict[str, float], surfaces: dict[str, str]
) -> None:
    made = expansion_from_terms(terms.items(), field="f", surfaces=surfaces)
    assert made is not None and made.count_words() == len(terms)
    assert {term.term: term.surface for term in made.terms} == {term: surfaces.get(term, "") for term in terms}
    assert Expansion.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("surfaces", [None, [], "boats", 5])
def test_words_that_are_no_object_are_a_value_error(surfaces: object) -> None:
    with pytest.raises(ValueError, match="expansion"):
        Expansion.from_json({"field": "body", "terms": {"boat": 1}, "surfaces": surfaces})


@pytest.mark.parametrize("word", [None, 5, ["boats"], {}])
def test_a_word_that_is_no_text_is_none(word: object) -> None:
    found = Expansion.from_json({"field": "body", "terms": {"boat": 1}, "surfaces": {"boat": word}})
    assert found.terms == (WeightedTerm("boat", 1.0, ""),)


def test_a_person_reads_the_words_where_they_are_known() -> None:
    assert SURFACED.to_text() == "boats sail Müll"
    assert repr(SURFACED) == "Expansion(3 terms of body)"


def test_a_table_may_hold_them(tmp_path: Path) -> None:
    row = {"query": "q", **SURFACED.to_json()}
    (tmp_path / "table.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")

    async def looked_up() -> Expansion | None:
        table = TableGenerator(tmp_path / "table.jsonl")
        await table.start()
        return await table.expand(ExpansionRequest("Q"))

    assert asyncio.run(looked_up()) == SURFACED


# -- beside a query: tests/data/dsl/surfaces.json has the cases ---------------------------------------------------------

_MARK = "zzadded"


def _forty(field: str, words: int) -> Expansion:
    """Forty terms, of which every third has no word and the others have several."""
    word = {i: " ".join([f"{_MARK}{i}"] * words) if i % 3 else "" for i in range(40)}
    return Expansion(terms=tuple(WeightedTerm(f"{_MARK}{i}", 40.0 - i, word[i]) for i in range(40)), field=field)


@settings(slow, max_examples=100)
@given(_bodies, _policies, st.builds(_forty, st.sampled_from(["elsewhere", "body", "c.text"]), st.integers(1, 3)))
@example({"query": {"match": {"title": "heart attack"}}}, Policy(max_clauses=50), _forty("elsewhere", 3))
def test_words_for_terms_are_added_and_nothing_else_and_no_more_than_allowed(
    body: Body, policy: Policy, expansion: Expansion
) -> None:
    before = json.dumps(body)
    try:
        out: Any = dsl.add_expansion(body, dsl.find_user_query(body, policy), expansion, policy)
    except Skip:
        return
    assert json.dumps(body) == before
    _check_untouched(body, out)
    _check_added(out, policy)
