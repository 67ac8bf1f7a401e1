"""The template turns criteria and facts into a short reasoning."""

import re
from pathlib import Path

import pytest

from querylift.plugin.errors import DataError
from querylift.trainer.judge.annotations import CRITERIA
from querylift.trainer.judge.reasoning_template import (
    QueryFacts,
    describe_reasoning,
    find_mentioned_facts,
    read_facts,
)

FACTS = QueryFacts(
    "1",
    "what does contour plowing reduce",
    ("Soil erosion", "Water runoff on slopes", "Sedimentation of rivers", "Lower fertilizer costs"),
)
DOCUMENT = "Plowing along the contour keeps the soil from eroding, and slows water on the slope."
CRITERIA_GRADES = {"exactness": 3, "topicality": 3, "coverage": 2, "contextual_fit": 1}


def test_the_reasoning_names_facts_and_then_each_criterion() -> None:
    assert describe_reasoning(CRITERIA_GRADES, FACTS, DOCUMENT) == (
        "It mentions some key facts: Soil erosion; Water runoff on slopes. It lacks Sedimentation of rivers. "
        "It gives the exact answer. It stays on topic. Much of it treats the query. It gives little background."
    )


def test_a_document_mentions_a_fact_with_half_of_its_content_words() -> None:
    facts = QueryFacts("1", "q", ("Kittens purr loudly at night", "The kittens", "Dogs bark", "of the"))
    # "purring" has the stem of "purr", and the fact without content words is never mentioned.
    assert find_mentioned_facts(facts, "A kitten is purring all night.") == [
        "Kittens purr loudly at night",
        "The kittens",
    ]
    assert find_mentioned_facts(facts, "It is night.") == []


@pytest.mark.parametrize(
    ("document", "beginning"),
    [
        ("Nothing of it.", "It mentions no key fact. It lacks Soil erosion."),
        ("Soil erosion.", "It mentions one key fact: Soil erosion. It lacks Water runoff on slopes."),
        ("soil erosion water runoff slope sedimentation", "It mentions most key facts: Soil erosion; Water"),
        ("soil erosion water runoff sedimentation fertilizer costs", "It mentions all key facts: Soil erosion; Water"),
    ],
)
def test_facts_are_counted_in_words(document: str, beginning: str) -> None:
    assert describe_reasoning(CRITERIA_GRADES, FACTS, document).startswith(beginning)


def test_without_facts_only_the_criteria_are_described() -> None:
    assert describe_reasoning({"exactness": 0}, None, DOCUMENT) == "It does not answer the question."
    assert describe_reasoning({"topicality": 3}, QueryFacts("1", "q"), DOCUMENT) == "It stays on topic."


def test_no_reasoning_states_a_grade() -> None:
    texts = [
        describe_reasoning(dict.fromkeys(CRITERIA, grade), FACTS, document)
        for grade in range(4)
        for document in (DOCUMENT, "", "soil")
    ]
    assert len(set(texts)) == 12
    assert not any(re.search(r"\d|grade|relevan|score", text) for text in texts)
    assert all(20 <= len(text.split()) <= 60 for text in texts)


def test_long_facts_are_cut() -> None:
    facts = QueryFacts("1", "q", ("one two three four five six seven eight.",))
    text = describe_reasoning({}, facts, "one two three four five six seven")
    assert text == "It mentions one key fact: one two three four five six."


def test_facts_are_read_by_query(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text('{"query_id": 7, "query": "q", "nuggets": ["a", " "], "questions": ["b?"]}\n', encoding="utf-8")
    assert read_facts(path) == {"7": QueryFacts("7", "q", ("a",))}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('{"query_id": "1", "query": "q", "nuggets": "a"}', "facts.jsonl.*1.*'nuggets' is 'a'; write a list"),
        ('{"query_id": "1", "query": "q"}\n{"query_id": "1", "query": "q"}', "2.*query '1' comes twice"),
        ('{"query": "q"}', "'query_id' is missing"),
    ],
)
def test_broken_facts_are_told_with_their_line(tmp_path: Path, lines: str, sentence: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(lines + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        read_facts(path)
