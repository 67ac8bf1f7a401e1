"""Grades from criteria: the sum of the four criteria, cut by one threshold for each grade above 0.

A model that graded criteria alone gives no grade. Thresholds turn its sums into grades of a scale.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.annotations import CRITERIA, MAX_CRITERION_GRADE

MAX_SUM = MAX_CRITERION_GRADE * len(CRITERIA)
"""The highest sum of an annotation's criteria."""
DEFAULT_CUTS = (7, 9, 12)
"""The thresholds of the scale `graded`, when no judgments choose others.

They are the rounded means of what `choose_thresholds` gives for three large models on TREC Deep Learning 2019. To measure on
these queries, choose others on training queries.
"""


def sum_criteria(criteria: Mapping[str, int]) -> int:
    """Return the sum of the four criteria, 0 to `MAX_SUM`. Raises KeyError when one is missing."""
    return sum(criteria[name] for name in CRITERIA)


def grade_by_thresholds(total: int, thresholds: Sequence[int]) -> int:
    """Return the number of thresholds that `total` reaches. The thresholds rise, and two may be equal."""
    return sum(total >= threshold for threshold in thresholds)


def choose_thresholds(sums: Sequence[int], grades: Sequence[int], *, highest: int | None = None) -> tuple[int, ...]:
    """Return one threshold for each grade from 1 to `highest`, so that grades become as frequent as in `grades`.

    Each sum c has a share of `sums` at or above it, and each grade g a share of `grades` at or above it. The threshold of g
    is the smallest c whose share is nearest to that of g. The two need not be of the same pairs. `highest` is by default the
    highest of `grades`.
    A grade below 0 counts as 0. Raises ValueError when one of the two is empty.
    """
    if not sums or not grades:
        raise ValueError("thresholds need at least one sum and one grade")
    ordered_sums = sorted(sums)
    cuts = range(ordered_sums[0], ordered_sums[-1] + 2)
    shares = [1 - bisect_left(ordered_sums, cut) / len(ordered_sums) for cut in cuts]

    def find_cut(grade: int) -> int:
        wanted_share = sum(given >= grade for given in grades) / len(grades)
        return cuts[min(range(len(cuts)), key=lambda position: abs(shares[position] - wanted_share))]

    return tuple(find_cut(grade) for grade in range(1, (max(grades) if highest is None else highest) + 1))


def check_thresholds(thresholds: Sequence[int], *, highest: int) -> None:
    """Raise SettingsError when there is not one threshold for each grade from 1 to `highest`, or when they fall."""
    text = ", ".join(map(str, thresholds))
    if len(thresholds) != highest:
        raise SettingsError(f"--cut is {text or 'missing'}; give it once for each grade from 1 to {highest}")
    if list(thresholds) != sorted(thresholds) or not all(1 <= cut <= MAX_SUM for cut in thresholds):
        raise SettingsError(f"--cut is {text}; give rising sums of the criteria, from 1 to {MAX_SUM}")


def spread_thresholds(highest: int) -> tuple[int, ...]:
    """Return `DEFAULT_CUTS` for a highest grade of 3, or else as many thresholds, spread evenly from 1 to `MAX_SUM`."""
    if highest == len(DEFAULT_CUTS):
        return DEFAULT_CUTS
    return tuple(math.ceil(grade * MAX_SUM / (highest + 1)) for grade in range(1, highest + 1))
