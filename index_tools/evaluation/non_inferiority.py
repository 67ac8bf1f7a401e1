"""The test whether one run loses less than a bound against another, which stays honest when losses are rare and large."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from querylift.index_tools.evaluation.comparison import SIGNIFICANCE_LEVEL, Floats, calculate_differences
from querylift.index_tools.evaluation.corrections import correct_p_values

_GREATEST_LOSS = 1.0
"""What a query can lose at most. Measures lie between 0 and 1."""
_MAX_PANELS = 500
"""The number of parts into which the integral may be cut."""
_TOLERANCE = 1e-7
"""How exact the p-value and the lower end are."""


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """The result of a test whether run b is worse than run a by less than `bound`, over the same queries."""

    bound: float
    difference: float
    """The mean of b minus a."""
    lower: float
    """The lower end of the one-sided 95% interval of the difference. It belongs to `p_value`, which is not corrected."""
    p_value: float
    """One-sided: how often chance alone shows so small a loss when the true loss is `bound`."""
    corrected_p_value: float
    """The same after Holm's correction over the tests that were made together."""

    @property
    def is_non_inferior(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.corrected_p_value < SIGNIFICANCE_LEVEL


def check_non_inferiority(a: Mapping[str, float], b: Mapping[str, float], *, bound: float) -> NonInferiority:
    """Test whether run b loses less than `bound` against run a. Measures lie between 0 and 1.

    The test is Gaffke's (2005). It adds one query that lost everything to the measured ones, and weighs all queries at
    random: the weights are a draw from the flat Dirichlet distribution. p is the probability that the weighted mean of the
    differences is at or below -`bound`. No sampling is needed for it. When every loss has the same size, this is the
    exact binomial test. Without any loss it is (1 - `bound`) ** queries, so few queries prove nothing.

    Raises ValueError as `compare_runs` does, when a value is not between 0 and 1, and when `bound` is not between 0 and 1.
    """
    if not 0 < bound < 1:
        raise ValueError(f"bound is {bound}; give the largest acceptable loss, a number above 0 and below 1")
    outside = [value for value in (*a.values(), *b.values()) if not 0 <= value <= 1]
    if outside and all(map(math.isfinite, outside)):
        raise ValueError(f"a value to compare is {outside[0]:g}; non-inferiority is tested on measures from 0 to 1")
    differences = np.array(list(calculate_differences(a, b).values()))
    p_value = _calculate_p_value(differences, bound)
    return NonInferiority(
        bound=bound,
        difference=float(differences.mean()),
        lower=_find_lower_end(differences),
        p_value=p_value,
        corrected_p_value=p_value,
    )


def correct_tests(tests: Sequence[NonInferiority]) -> list[NonInferiority]:
    """Return tests that were made together, with their p-values corrected."""
    corrected = correct_p_values([test.p_value for test in tests])
    return [replace(test, corrected_p_value=p_value) for test, p_value in zip(tests, corrected, strict=True)]


def count_needed_queries(bound: float, *, test_count: int = 1) -> int:
    """Return the fewest queries with which all of `test_count` tests can show that nothing is lost beyond `bound`.

    With fewer queries, a loss of everything at a single query in 1 / `bound` is too easily missed.
    """
    return math.floor(math.log(SIGNIFICANCE_LEVEL / test_count) / math.log1p(-bound / _GREATEST_LOSS)) + 1


def _find_lower_end(differences: Floats) -> float:
    """Return the bound, as a negative number, at which the p-value is 0.05."""
    from scipy.optimize import brentq

    def exceed_significance_level(mean: float) -> float:
        return _calculate_p_value(differences, -mean) - SIGNIFICANCE_LEVEL

    return float(
        brentq(exceed_significance_level, -_GREATEST_LOSS, float(differences.max()), xtol=_TOLERANCE, rtol=_TOLERANCE)
    )


def _calculate_p_value(differences: Floats, bound: float) -> float:
    """Return the probability that the randomly weighted mean is at or below -`bound`.

    Dirichlet weights are exponential variables divided by their sum. So the question is whether a sum of exponential
    variables, each times (difference + bound), is at or below 0. Its characteristic function is inverted (Gil-Pelaez, 1951).
    """
    from scipy.integrate import quad

    values, counts = np.unique(np.append(differences, -_GREATEST_LOSS) + bound, return_counts=True)
    if values[0] >= 0 or values[-1] <= 0:
        return float(values[-1] <= 0)
    values /= math.sqrt(float(counts @ values**2))

    def integrand(t: float) -> float:
        product = values * t
        size = -0.5 * float(counts @ np.log1p(product**2))
        return math.exp(size) * math.sin(float(counts @ np.arctan(product))) / t

    integral, _ = quad(integrand, 0, math.inf, limit=_MAX_PANELS, epsabs=_TOLERANCE, epsrel=_TOLERANCE)
    return min(1.0, max(0.0, 0.5 - float(integral) / math.pi))
