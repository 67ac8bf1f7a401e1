"""Sums of criteria become grades by thresholds."""

import pytest

from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.criteria_grades import (
    check_thresholds,
    choose_thresholds,
    grade_by_thresholds,
    spread_thresholds,
    sum_criteria,
)


def test_the_sum_is_of_the_four_criteria() -> None:
    assert sum_criteria({"exactness": 1, "topicality": 3, "coverage": 2, "contextual_fit": 2}) == 8


@pytest.mark.parametrize(("total", "grade"), [(0, 0), (4, 0), (5, 1), (7, 2), (9, 2), (10, 3), (12, 3)])
def test_the_grade_is_the_number_of_thresholds_that_the_sum_reaches(total: int, grade: int) -> None:
    assert grade_by_thresholds(total, (5, 7, 10)) == grade


def test_equal_thresholds_leave_a_grade_out() -> None:
    assert [grade_by_thresholds(total, (5, 5, 9)) for total in (4, 5, 9)] == [0, 2, 3]


def test_thresholds_make_grades_as_frequent_as_they_are_in_the_judgments() -> None:
    sums, grades = [0, 0, 1, 3, 4, 6, 8, 9, 11, 12], [0, 0, 0, 0, 0, 1, 1, 2, 2, 3]
    assert choose_thresholds(sums, grades) == (5, 9, 12)
    assert [sum(grade_by_thresholds(s, (5, 9, 12)) == g for s in sums) for g in range(4)] == [5, 2, 2, 1]


def test_the_smallest_of_equally_good_sums_is_the_threshold() -> None:
    assert choose_thresholds([2, 9], [0, 1]) == (3,)
    # A share of 1/4 lies midway between those of 0 and 1/2.
    assert choose_thresholds([2, 9], [0, 0, 0, 1]) == (3,)


def test_a_grade_that_no_judgment_has_gets_a_threshold_beyond_every_sum() -> None:
    assert choose_thresholds([0, 5, 9], [0, 1, 1], highest=3) == (1, 10, 10)


def test_grades_below_zero_count_as_zero() -> None:
    assert choose_thresholds([0, 5], [-1, 1]) == choose_thresholds([0, 5], [0, 1]) == (1,)


def test_thresholds_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sum and one grade"):
        choose_thresholds([], [1])


def test_default_thresholds_fit_every_scale() -> None:
    assert spread_thresholds(3) == (7, 9, 12)
    assert spread_thresholds(1) == (6,)
    for highest in range(1, 10):
        check_thresholds(spread_thresholds(highest), highest=highest)


@pytest.mark.parametrize(
    ("cuts", "sentence"),
    [
        ((5, 7), "--cut is 5, 7; give it once for each grade from 1 to 3"),
        ((7, 5, 10), "--cut is 7, 5, 10; give rising sums"),
        ((5, 7, 13), "from 1 to 12"),
        ((0, 7, 12), "from 1 to 12"),
    ],
)
def test_wrong_thresholds_are_refused(cuts: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        check_thresholds(cuts, highest=3)
