"""Agreement of two raters, and of two judges over systems, against values computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from querylift.index_tools.judging.agreement import (
    bootstrap_interval,
    compute_kappa,
    compute_kendall_tau,
    compute_macro_f1,
    count_confusions,
)

TWO_GRADES, FOUR_GRADES = range(2), range(4)


def test_kappa_is_the_agreement_beyond_chance() -> None:
    """Of 50 pairs, both raters say 1 for 20 and 0 for 15: observed .70, chance .5 * .6 + .5 * .4 = .50, kappa .40."""
    first = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert compute_kappa(first, second, TWO_GRADES) == pytest.approx(0.4)


def test_kappa_of_four_grades_counts_every_other_grade_as_disagreement() -> None:
    """Observed 3/4; chance (1*1 + 1*0 + 1*2 + 1*1) / 16 = 4/16; kappa (12/16 - 4/16) / (12/16) = 2/3."""
    assert compute_kappa([0, 1, 2, 3], [0, 2, 2, 3], FOUR_GRADES) == pytest.approx(2 / 3)


def test_kappa_is_1_for_equal_grades_and_below_0_where_raters_contradict_each_other() -> None:
    assert compute_kappa([0, 1, 2], [0, 1, 2], FOUR_GRADES) == 1
    assert compute_kappa([0, 1], [1, 0], TWO_GRADES) == -1


def test_kappa_is_0_where_both_raters_gave_one_and_the_same_grade() -> None:
    assert compute_kappa([0, 0, 0], [0, 0, 0], FOUR_GRADES) == 0
    assert compute_kappa([0, 0, 0], [1, 1, 1], FOUR_GRADES) == 0


def test_macro_f1_is_the_mean_over_the_grades_that_somebody_gave() -> None:
    """Grade 0: 2 * 1 / (2 + 1) = 2/3. Grade 1: 2 * 1 / (1 + 2) = 2/3. Grade 3: 1. Nobody gave grade 2. The mean is 7/9."""
    assert compute_macro_f1([0, 0, 1, 3], [0, 1, 1, 3], FOUR_GRADES) == pytest.approx(7 / 9)
    assert compute_macro_f1([0, 1, 1, 3], [0, 0, 1, 3], FOUR_GRADES) == pytest.approx(7 / 9)


def test_macro_f1_counts_0_for_a_grade_that_one_rater_never_gave() -> None:
    assert compute_macro_f1([0, 0, 0, 1], [0, 0, 0, 0], TWO_GRADES) == pytest.approx((6 / 7) / 2)


@pytest.mark.parametrize("compute", [compute_kappa, compute_macro_f1])
@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ([], [], "0 and 0 grades cannot be compared"),
        ([1], [1, 0], "1 and 2 grades cannot be compared"),
        ([1, 4], [1, 0], "grade 4 is off the scale"),
    ],
)
def test_grades_that_cannot_be_compared_are_refused(
    compute: Callable[[Sequence[int], Sequence[int], range], float],
    first: list[int],
    second: list[int],
    sentence: str,
) -> None:
    with pytest.raises(ValueError, match=sentence):
        compute(first, second, FOUR_GRADES)


def test_kendall_tau_counts_the_pairs_of_systems_in_the_same_order() -> None:
    """Of the six pairs of four systems, only c and d change places: (5 - 1) / 6."""
    first = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    assert compute_kendall_tau(first, {"a": 1, "b": 2, "c": 4, "d": 3}) == pytest.approx(4 / 6)
    assert compute_kendall_tau(first, {"d": 1, "c": 2, "b": 3, "a": 4}) == -1


def test_kendall_tau_corrects_for_ties_as_tau_b_does() -> None:
    """Three pairs. a and b tie in the second judge: 2 concordant, untied 3 and 2, so 2 / sqrt(6)."""
    assert compute_kendall_tau({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 1, "c": 3}) == pytest.approx(2 / 6**0.5)
    assert compute_kendall_tau({"a": 1, "b": 2}, {"a": 5, "b": 5}) == 0


@pytest.mark.parametrize("second", [{"a": 1.0}, {"a": 1.0, "c": 2.0}])
def test_kendall_tau_refuses_other_systems_and_a_single_one(second: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give the scores of the same two systems"):
        compute_kendall_tau({"a": 1.0} if len(second) == 1 else {"a": 1.0, "b": 2.0}, second)


def test_confusions_have_a_row_for_each_grade_of_the_first_rater() -> None:
    assert count_confusions([0, 1, 1, 1], [0, 0, 1, 1], TWO_GRADES) == [[1, 0], [1, 2]]


def test_the_interval_draws_whole_queries_and_repeats_with_the_same_seed() -> None:
    """Two queries, one graded alike and one not. A draw has kappa 1, -1, or that of both together: 0."""
    pairs = {"q1": [(0, 0), (1, 1)], "q2": [(0, 1), (1, 0)]}

    def measure(first: Sequence[int], second: Sequence[int]) -> float:
        return compute_kappa(first, second, TWO_GRADES)

    assert bootstrap_interval(pairs, measure, resamples=200) == (-1, 1)
    assert bootstrap_interval({"q1": pairs["q1"]}, measure, resamples=50) == (1, 1)
    with pytest.raises(ValueError, match="0 queries"):
        bootstrap_interval({"q1": []}, measure)
