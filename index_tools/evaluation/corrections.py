"""Holm's correction: several tests in one table, of which one may look significant by chance."""

from __future__ import annotations

from collections.abc import Sequence


def correct_p_values(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction (1979), in the same order.

    The smallest of m p-values is multiplied by m, the next by m - 1, and so on. None becomes smaller than the one before
    it in that order, and none exceeds 1. With a limit of 0.05, all tests together give a false alarm in at most 5% of cases.
    """
    corrected = [0.0] * len(p_values)
    floor = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = floor
    return corrected
