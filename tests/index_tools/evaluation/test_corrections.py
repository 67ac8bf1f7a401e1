"""Holm's correction is the one computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from querylift.index_tools.evaluation.corrections import correct_p_values


def test_the_published_p_values_of_the_generating_student_are_no_longer_below_five_percent() -> None:
    # .036 * 4, .054 * 3, .18 * 2, and .28, which may not be smaller than the one before it.
    assert correct_p_values([0.036, 0.054, 0.18, 0.28]) == pytest.approx([0.144, 0.162, 0.36, 0.36])


def test_the_order_is_kept_and_nothing_exceeds_one() -> None:
    assert correct_p_values([0.9, 0.01, 0.5]) == pytest.approx([1.0, 0.03, 1.0])


@pytest.mark.parametrize("p_values", [[], [0.04]])
def test_one_test_or_none_is_not_corrected(p_values: list[float]) -> None:
    assert correct_p_values(p_values) == p_values


def test_five_tests_together_give_a_false_alarm_one_time_in_twenty() -> None:
    p_values = np.random.default_rng(1).random((4000, 5))
    alarms = [min(correct_p_values(list(row))) < 0.05 for row in p_values]
    assert 0.04 < np.mean(alarms) < 0.06
    assert np.mean(p_values.min(axis=1) < 0.05) > 0.2, "without correction it would be one in four"
