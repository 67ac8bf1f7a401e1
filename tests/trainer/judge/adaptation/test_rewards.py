"""The reward of an answer: every dimension is computed by hand."""

from __future__ import annotations

import json

import pytest

from querylift.index_tools.judging.grade_scale import SCALES, parse_scale
from querylift.trainer.judge.adaptation.adaptation_config import RewardOptions
from querylift.trainer.judge.adaptation.chat_rows import AnswerFields, format_answer, read_answer_fields
from querylift.trainer.judge.adaptation.rewards import (
    DIMENSIONS,
    score_answer,
    score_consistency,
    score_format,
    score_grounding,
    score_label,
    score_length,
    weigh_scores,
)
from tests.helpers.judge_lessons import make_annotation

GRADED, BINARY = SCALES["graded"], SCALES["binary"]
CRITERIA = {"exactness": 3, "topicality": 2, "coverage": 1, "contextual_fit": 0}  # their mean is 1.5 of 3


@pytest.mark.parametrize(
    ("answer_grade", "grade", "expected"), [(3, 3, 1.0), (2, 3, 2 / 3), (0, 3, 0.0), (1, 0, 2 / 3), (None, 0, 0.0)]
)
def test_the_label_counts_by_its_distance(answer_grade: int | None, grade: int, expected: float) -> None:
    assert score_label(AnswerFields(grade=answer_grade), grade, GRADED) == pytest.approx(expected)


def test_a_wrong_label_on_a_scale_of_two_grades_counts_nothing() -> None:
    assert score_label(AnswerFields(grade=0), 1, BINARY) == 0.0


@pytest.mark.parametrize(
    ("grade", "scale", "expected"),
    [("3", "graded", 0.5), ("2", "graded", 1 - (2 / 3 - 0.5)), ("0", "graded", 0.5), ("2", "4", 1.0)],
)
def test_criteria_agree_with_the_grade_when_both_are_the_same_share(grade: str, scale: str, expected: float) -> None:
    fields = AnswerFields(grade=int(grade), criteria=CRITERIA)
    assert score_consistency(fields, parse_scale(scale)) == pytest.approx(expected)


def test_without_a_grade_or_with_a_criterion_missing_there_is_no_consistency() -> None:
    assert score_consistency(AnswerFields(criteria=CRITERIA), GRADED) == 0.0
    assert score_consistency(AnswerFields(grade=1, criteria={"coverage": 1}), GRADED) == 0.0


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("It measures rain", 1.0),  # "measures" and "measured" have one stem; "it" is no content word
        ("Rain is measured by elephants", 2 / 3),
        ("Elephants like bananas", 0.0),
        ("It is the", 0.0),
        ("", 0.0),
    ],
)
def test_a_reasoning_is_grounded_by_its_content_words(reasoning: str, expected: float) -> None:
    assert score_grounding(reasoning, "what is rain", "A station measured water.") == pytest.approx(expected)


@pytest.mark.parametrize(("words", "expected"), [(0, 0.0), (2, 0.5), (4, 1.0), (6, 1.0), (8, 1.0), (16, 0.5)])
def test_a_reasoning_counts_less_the_further_it_is_outside_the_bounds(words: int, expected: float) -> None:
    assert score_length("word " * words, min_words=4, max_words=8) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps({"reasoning": "Why.", **CRITERIA, "grade": 2}), 1.0),
        (json.dumps({"reasoning": "Why.", "coverage": 1, "grade": 2}), 3 / 6),
        (json.dumps({"reasoning": " ", **CRITERIA, "grade": 4}), 4 / 6),
        (json.dumps({"reasoning": 7, **CRITERIA, "exactness": True, "coverage": 9, "grade": "2"}), 2 / 6),
        ('The grade: {"grade": 2}', 0.0),
        ('{"grade": 2', 0.0),
        ("[2]", 0.0),
        ("2", 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_the_format_counts_valid_fields_of_one_json_object(text: str, expected: float) -> None:
    assert score_format(read_answer_fields(text, GRADED)) == pytest.approx(expected)


def test_the_reward_is_the_mean_of_the_dimensions_by_their_weights() -> None:
    scores = {"label": 1.0, "consistency": 0.5, "grounding": 0.25, "length": 0.0, "format": 1.0}
    weights = {"label": 4.0, "consistency": 2.0, "grounding": 4.0, "length": 1.0, "format": 5.0}
    assert weigh_scores(scores, weights) == (4 * 1 + 2 * 0.5 + 4 * 0.25 + 1 * 0 + 5 * 1) / 16


def test_the_answer_of_an_annotation_gets_nearly_all_of_the_reward() -> None:
    annotation = make_annotation("rain", 2)
    options = RewardOptions(label=0.4, consistency=0.2, grounding=0.2, length=0.1, format=0.1, min_words=14)
    answer = score_answer(format_answer(annotation), annotation, GRADED, options)
    # "The document says that stations measure rain.": 7 words; of document, says, stations, measure, rain three occur
    assert answer.scores == pytest.approx(
        {"label": 1.0, "consistency": 1.0, "grounding": 3 / 5, "length": 0.5, "format": 1.0}
    )
    assert answer.reward == pytest.approx(0.4 + 0.2 + 0.2 * 3 / 5 + 0.1 * 0.5 + 0.1)


def test_a_text_that_is_no_answer_gets_nothing() -> None:
    answer = score_answer("I cannot grade this.", make_annotation(), GRADED, RewardOptions())
    assert answer.reward == 0.0 and answer.scores == dict.fromkeys(DIMENSIONS, 0.0)
