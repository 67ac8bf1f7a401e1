"""A teacher's answer is read from whatever stands around it, and its faults are told."""

import pytest

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE, parse_scale
from querylift.trainer.judge.answers import MalformedAnswer, parse_judge_answer
from tests.helpers.judge_server import CRITERIA_GRADES, format_judge_answer


@pytest.mark.parametrize(
    "text",
    [
        format_judge_answer(),
        f"```json\n{format_judge_answer()}\n```",
        f"Sure! Here is my judgment:\n{format_judge_answer()}\nI hope that helps {{smile}}.",
        f"<think>Perhaps {format_judge_answer(grade=0)}?</think>\n{format_judge_answer()}",
        f"It looks like {format_judge_answer(grade=1)}. After a second look: {format_judge_answer()}",
        f'{format_judge_answer()} {{"note": "done"}}',
        format_judge_answer(grade="2", exactness=2.0),
        format_judge_answer(remark="more than asked"),
    ],
    ids=["alone", "fenced", "in prose", "after thinking", "twice", "before another object", "as texts", "more keys"],
)
def test_the_answer_is_found(text: str) -> None:
    answer = parse_judge_answer(text, DEFAULT_SCALE)
    assert (answer.grade, answer.criteria, answer.reasoning) == (2, CRITERIA_GRADES, "It names the cause.")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("The grade is 2.", "it holds no JSON object"),
        ('{"reasoning": "It was cut o', "it holds no complete JSON object"),
        ("[" * 5000 + "{" * 5000, "it holds no complete JSON object"),
        ("<think>{}</think>", "it holds no JSON object"),
        ("{}", '"reasoning" is missing'),
        (format_judge_answer(grade=None), '"grade" is null; it must be a whole number from 0 to 3'),
        (format_judge_answer(grade=4), '"grade" is 4; it must be a whole number from 0 to 3'),
        (format_judge_answer(grade=True), '"grade" is true; it must be'),
        (format_judge_answer(grade=1.5), '"grade" is 1.5; it must be'),
        (format_judge_answer(coverage=7), '"coverage" is 7; it must be a whole number from 0 to 3'),
        (format_judge_answer(coverage=None), '"coverage" is missing'),
        (format_judge_answer(reasoning=" 1        "), '"reasoning" must be a text of at least 10 characters'),
        (format_judge_answer(reasoning=["a"]), '"reasoning" must be a text of at least 10 characters'),
    ],
)
def test_a_fault_is_told_in_one_clause(text: str, fault: str) -> None:
    with pytest.raises(MalformedAnswer) as caught:
        parse_judge_answer(text, DEFAULT_SCALE)
    assert str(caught.value).startswith(fault)
    assert "\n" not in str(caught.value)


def test_the_scale_bounds_the_grade() -> None:
    assert parse_judge_answer(format_judge_answer(grade=5), parse_scale("5")).grade == 5
    with pytest.raises(MalformedAnswer, match=r"from 0 to 1$"):
        parse_judge_answer(format_judge_answer(), parse_scale("binary"))


def test_the_umbrela_scale_needs_no_criteria() -> None:
    answer = parse_judge_answer(
        '{"reasoning": "It answers.", "match": 3, "trustworthiness": 2, "grade": 3}', parse_scale("umbrela")
    )
    assert (answer.grade, answer.criteria) == (3, {})
    with_criteria = parse_judge_answer(format_judge_answer(), parse_scale("umbrela"))
    assert with_criteria.criteria == CRITERIA_GRADES


def test_half_a_surrogate_pair_in_an_answer_is_replaced_in_what_is_written_and_sent_back() -> None:
    whole = '{"reasoning": "It names snow \\ud83d lines.", "exactness": 1, "topicality": 1, "coverage": 1, "contextual_fit": 1'
    assert parse_judge_answer(whole + ', "grade": 1}', DEFAULT_SCALE).reasoning == "It names snow ? lines."
    with pytest.raises(MalformedAnswer, match=r'"grade" is "\?"; it must be a whole number') as fault:
        parse_judge_answer(whole + ', "grade": "\\ud83d"}', DEFAULT_SCALE)
    assert str(fault.value).encode()


def test_a_very_long_grade_is_shown_in_part() -> None:
    text = '{"reasoning": "It names snow lines.", "exactness": 1, "topicality": 1, "coverage": 1, "contextual_fit": 1, "grade": '
    with pytest.raises(MalformedAnswer) as fault:
        parse_judge_answer(text + "9" * 400 + "}", DEFAULT_SCALE)
    assert len(str(fault.value)) < 120
