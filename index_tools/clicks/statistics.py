"""Intervals and tests for an experiment in which users, not searches, were drawn by chance. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

Z_95 = NormalDist().inv_cdf(0.975)
Z_80_POWER = NormalDist().inv_cdf(0.8)
_MAX_EXACT_COUNT = 2000
"""With more votes, the sign test takes the normal approximation, with a correction for continuity."""


@dataclass(frozen=True, slots=True)
class RatioMean:
    """The sum of a measure over all searches of a group, per search. `variance` is that of the mean, over users."""

    mean: float
    variance: float


def estimate_ratio(sums: Sequence[float], counts: Sequence[int]) -> RatioMean:
    """Return the mean per search from the sum and the number of searches of each user, by the delta method.

    With users i = 1..n, sums x_i and counts k_i, the mean is m = sum(x_i) / sum(k_i). Its variance is
    sum((x_i - m k_i)^2) / (n (n - 1) kbar^2), where kbar is the mean count. So the searches of one user may depend on each
    other. Deng, Knoblich and Lu, Applying the delta method in metric analytics, KDD 2018. Raises ValueError below two users.
    """
    n = len(counts)
    if n < 2 or not all(counts):
        raise ValueError("the delta method needs two users or more, each with a search")
    mean = math.fsum(sums) / sum(counts)
    squares = math.fsum((x - mean * k) ** 2 for x, k in zip(sums, counts, strict=True))
    return RatioMean(mean, squares / (n * (n - 1) * (sum(counts) / n) ** 2))


@dataclass(frozen=True, slots=True)
class Difference:
    """The expanded group minus the control group, with the ends of the 95% interval."""

    value: float
    low: float
    high: float
    detectable: float
    """A true difference of this size would have been seen four times out of five."""


def compare_means(control: RatioMean, expanded: RatioMean) -> Difference:
    """Return the difference of two independent means with its normal interval."""
    error = math.sqrt(control.variance + expanded.variance)
    value = expanded.mean - control.mean
    return Difference(value, value - Z_95 * error, value + Z_95 * error, (Z_95 + Z_80_POWER) * error)


def calculate_share_p_value(expanded_count: int, control_count: int, share: float) -> float:
    """Return how often chance alone draws a share of users at least so far from `share`: chi-square, one degree of freedom."""
    total = expanded_count + control_count
    expected = total * share
    statistic = (expanded_count - expected) ** 2 * (1 / expected + 1 / (total - expected))
    return math.erfc(math.sqrt(statistic / 2))


def calculate_sign_p_value(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the sign test: how often a fair coin is at least so one-sided. 1 without votes."""
    total = wins + losses
    if wins == losses:
        return 1.0
    if total > _MAX_EXACT_COUNT:
        return math.erfc((abs(wins - losses) - 1) / math.sqrt(2 * total))
    tail = sum(math.comb(total, i) for i in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / (1 << total))


def estimate_share(wins: int, losses: int) -> tuple[float, float, float]:
    """Return the share of wins and the ends of its 95% interval (Wilson, 1927). Raises ValueError without votes."""
    total = wins + losses
    if not total:
        raise ValueError("there are no votes")
    share = wins / total
    center = (share + Z_95**2 / (2 * total)) / (1 + Z_95**2 / total)
    half = Z_95 / (1 + Z_95**2 / total) * math.sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2))
    return share, center - half, center + half
