"""Weighted terms with their surface words: as a record, as JSON, and beside a query."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from querylift.plugin import dsl
from querylift.plugin.cache import decode_expansion, encode_expansion
from querylift.plugin.expansion import MAX_DOCUMENTS, MAX_TERMS, Expansion, WeightedTerm, expansion_from_terms
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.table import TableGenerator
from querylift.plugin.outcome import Skip
from querylift.plugin.policy import Policy
from querylift.plugin.warming.table_store import make_table_row
from tests.helpers.rewrite_checks import assert_only_words_are_added, assert_rest_is_unchanged
from tests.helpers.search_bodies import MARK, Body, policies, search_bodies, slow

TERMS_WITH_SURFACES = Expansion(
    terms=(WeightedTerm("boat", 2.0, "boats"), WeightedTerm("sail", 1.0), WeightedTerm("müll", 0.5, "Müll")),
    field="body",
)


def look_up_in_table(path: Path) -> Expansion | None:
    """The expansion of the query Q."""

    async def look_up() -> Expansion | None:
        table = TableGenerator(path)
        await table.start()
        return await table.expand(ExpansionRequest("Q"))

    return asyncio.run(look_up())


def test_terms_and_their_surface_words_survive_json_and_the_cache() -> None:
    assert TERMS_WITH_SURFACES.to_json() == {
        "field": "body",
        "terms": {"boat": 2.0, "sail": 1.0, "müll": 0.5},
        "surfaces": {"boat": "boats", "müll": "Müll"},
    }
    assert Expansion.from_json(json.loads(json.dumps(TERMS_WITH_SURFACES.to_json()))) == TERMS_WITH_SURFACES
    assert decode_expansion(encode_expansion(TERMS_WITH_SURFACES)) == TERMS_WITH_SURFACES


def test_terms_of_several_fields_survive_json_and_the_cache() -> None:
    terms_json = {
        "groups": [
            {"fields": ["title", "text"], "terms": {"boat": 2.0, "sail": 0.5}, "surfaces": {"boat": "boats"}},
            {"fields": ["title.exact"], "terms": {"boats": 1.0}},
        ]
    }
    expansion = Expansion.from_json(terms_json)
    assert expansion.terms == (
        WeightedTerm("boat", 2.0, "boats", ("title", "text")),
        WeightedTerm("boats", 1.0, "", ("title.exact",)),
        WeightedTerm("sail", 0.5, "", ("title", "text")),
    )
    assert expansion.to_json() == terms_json
    assert decode_expansion(encode_expansion(expansion)) == expansion
    assert repr(expansion) == "Expansion(3 terms of title, text, title.exact)"


def test_a_table_keeps_terms_of_several_fields(tmp_path: Path) -> None:
    """Also when terms of two groups weigh the same."""
    groups = [
        {"fields": ["title"], "terms": {"sail": 0.5, "boats": 0.9}},
        {"fields": ["text"], "terms": {"boat": 1.0, "tide": 0.5, "sail": 0.5}},
    ]
    expansion = Expansion.from_json({"groups": groups, "documents": {"7": 3.0}})
    assert [(term.term, term.fields) for term in expansion.terms[2:]] == [
        ("sail", ("text",)),
        ("sail", ("title",)),
        ("tide", ("text",)),
    ]
    row = make_table_row("q", expansion)
    assert row is not None
    (tmp_path / "table.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert look_up_in_table(tmp_path / "table.jsonl") == expansion


def test_one_group_of_one_field_is_read_and_written_as_a_field() -> None:
    expansion = Expansion.from_json({"groups": [{"fields": ["body"], "terms": {"boat": 2.0}}]})
    assert expansion == Expansion(terms=(WeightedTerm("boat", 2.0),), field="body")
    assert expansion.to_json() == {"field": "body", "terms": {"boat": 2.0}}


def test_the_heaviest_terms_of_all_groups_stay() -> None:
    light_terms = {f"light{i}": 1.0 + i / 1000 for i in range(MAX_TERMS)}
    heavy_terms = {f"heavy{i}": 2.0 for i in range(100)}
    groups = [{"fields": ["title"], "terms": light_terms}, {"fields": ["text"], "terms": heavy_terms}]
    fields = [term.fields for term in Expansion.from_json({"groups": groups}).terms]
    assert fields == [("text",)] * 100 + [("title",)] * (MAX_TERMS - 100)


@pytest.mark.parametrize(
    "groups",
    [
        None,
        {},
        [],
        ["title"],
        [{"fields": [], "terms": {"boat": 1}}],
        [{"fields": "title", "terms": {"boat": 1}}],
        [{"fields": ["title", 5], "terms": {"boat": 1}}],
        [{"fields": ["title"], "terms": ["boat"]}],
        [{"fields": ["title"], "terms": {"boat": 0}}],
        [{"fields": ["title"], "terms": {"boat": 1}}, {"fields": [""], "terms": {"boat": 1}}],
    ],
)
def test_groups_of_another_shape_raise_a_value_error(groups: object) -> None:
    with pytest.raises(ValueError, match="expansion"):
        Expansion.from_json({"groups": groups})


def test_terms_without_surface_words_are_written_without_surfaces() -> None:
    plain = Expansion(terms=(WeightedTerm("boat", 2.0),), field="body")
    assert plain.to_json() == {"field": "body", "terms": {"boat": 2.0}}
    assert Expansion.from_json({"field": "body", "terms": {"boat": 2}, "surfaces": {}}) == plain


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=5), st.floats(1e-6, 1e6), min_size=1, max_size=MAX_TERMS),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)
@example({"a": 1.0}, {"a": "", "b": "c"})
def test_any_terms_and_surface_words_survive_json(terms: dict[str, float], surfaces: dict[str, str]) -> None:
    expansion = expansion_from_terms(terms.items(), field="f", surfaces=surfaces)
    assert expansion is not None and expansion.count_words() == len(terms)
    assert {term.term: term.surface for term in expansion.terms} == {term: surfaces.get(term, "") for term in terms}
    assert Expansion.from_json(json.loads(json.dumps(expansion.to_json()))) == expansion


@pytest.mark.parametrize("surfaces", [None, [], "boats", 5])
def test_surfaces_that_are_not_an_object_raise_a_value_error(surfaces: object) -> None:
    with pytest.raises(ValueError, match="expansion"):
        Expansion.from_json({"field": "body", "terms": {"boat": 1}, "surfaces": surfaces})


@pytest.mark.parametrize("word", [None, 5, ["boats"], {}])
def test_a_surface_word_that_is_not_text_is_ignored(word: object) -> None:
    expansion = Expansion.from_json({"field": "body", "terms": {"boat": 1}, "surfaces": {"boat": word}})
    assert expansion.terms == (WeightedTerm("boat", 1.0, ""),)


def test_the_text_for_a_person_has_the_surface_words_where_they_are_known() -> None:
    assert TERMS_WITH_SURFACES.to_text() == "boats sail Müll"
    assert repr(TERMS_WITH_SURFACES) == "Expansion(3 terms of body)"


def test_a_table_may_hold_terms_with_surface_words(tmp_path: Path) -> None:
    row = {"query": "q", **TERMS_WITH_SURFACES.to_json()}
    (tmp_path / "table.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")

    assert look_up_in_table(tmp_path / "table.jsonl") == TERMS_WITH_SURFACES


# -- beside a query: tests/data/dsl/surfaces.json has the cases ---------------------------------------------------------


_FIELDS = ("title", "c.text", "elsewhere")


def _build_forty_terms(field: str, words_per_term: int, more_fields: int = 0) -> Expansion:
    """Return forty terms. Every third has no surface word, and the others have `words_per_term`.

    Every second term belongs to so many more fields.
    """
    surfaces = [" ".join([f"{MARK}{i}"] * words_per_term) if i % 3 else "" for i in range(40)]
    terms = tuple(
        WeightedTerm(f"{MARK}{i}", 40.0 - i, surface, (field, *_FIELDS[:more_fields]) if i % 2 else ())
        for i, surface in enumerate(surfaces)
    )
    return Expansion(terms=terms, field=field)


@settings(slow, max_examples=100)
@given(
    search_bodies,
    policies,
    st.builds(
        _build_forty_terms, st.sampled_from(["elsewhere", "body", "c.text"]), st.integers(1, 3), st.integers(0, 3)
    ),
)
@example({"query": {"match": {"title": "heart attack"}}}, Policy(max_clauses=50), _build_forty_terms("elsewhere", 3))
def test_only_surface_words_are_added_and_not_more_than_allowed(
    body: Body, policy: Policy, expansion: Expansion
) -> None:
    original = json.dumps(body)
    try:
        rewritten: Any = dsl.add_expansion(body, dsl.find_user_query(body, policy), expansion, policy)
    except Skip:
        return
    assert json.dumps(body) == original
    assert_rest_is_unchanged(body, rewritten)
    assert_only_words_are_added(rewritten, policy)


# -- documents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"documents": {"a/1": 2.5, 'é "x"': 1.0}},
        {"text": "heart attack", "documents": {"7": 1.0}},
        {"field": "body", "terms": {"infarct": 2.0}, "documents": {"7": 1.0}},
    ],
)
def test_documents_survive_json(value: dict[str, object]) -> None:
    assert Expansion.from_json(value).to_json() == value


def test_the_heaviest_documents_stay_and_unusable_ones_are_left_out() -> None:
    documents = {"zero": 0, "negative": -1, "": 1, "x" * 513: 1, "infinite": float("inf")}
    many = {str(i): i + 1 for i in range(300)}
    expansion = Expansion.from_json({"documents": documents | many})
    assert [document.doc_id for document in expansion.documents[:2]] == ["299", "298"]
    assert len(expansion.documents) == MAX_DOCUMENTS == 200


@pytest.mark.parametrize(
    ("documents", "sentence"),
    [
        ({"7": 0}, "the expansion has no usable document; give at least one a weight above 0"),
        (["7"], '"documents" is no object; write {"the _id of a document": its weight}'),
    ],
)
def test_unusable_documents_are_named(documents: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Expansion.from_json({"documents": documents})


def test_documents_without_words_are_an_expansion_without_words() -> None:
    expansion = Expansion.from_json({"documents": {"7": 1.0}})
    assert (expansion.to_text(), expansion.count_words()) == ("", 0)
    assert repr(expansion) == "Expansion(0 chars, 1 documents)"
