"""Comparison of systems that were trained with several seeds: the p-value covers seeds as well as queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from querylift.index_tools.evaluation.comparison import TIE_TOLERANCE, Comparison, Floats, compare_runs


@dataclass(frozen=True, slots=True)
class _VariancePart:
    """One part of the variance of the mean difference, and its degrees of freedom."""

    variance: float
    degrees_of_freedom: int


def compare_seeds(
    a: Sequence[Mapping[str, float]],
    b: Sequence[Mapping[str, float]],
    *,
    permutations: int = 100_000,
    resamples: int = 10_000,
) -> Comparison:
    """Compare the seeds of system b with those of system a, the baseline. Each seed maps query ids to values.

    Differences, wins and losses are those of the means over seeds. A system with one seed has no variance over seeds. Two
    systems with equally many seeds are compared seed by seed, in their order.

    With more than one seed, queries and seeds are both samples, as in a mixed model with crossed random effects. The
    variance of the mean difference is the sum of the parts of queries and of seeds, from the mean squares of a two-way
    analysis of variance. The t-test and the 95% interval use Satterthwaite's degrees of freedom. The interval is cut at -1
    and 1. The p-value is the larger of two: that of this test and that of `compare_runs` on the means over seeds.

    Raises ValueError as `compare_runs` does, and when a system has no seed or its seeds have different queries.
    """
    for seeds in (a, b):
        if not seeds:
            raise ValueError("a system without a seed cannot be compared")
        if any(seed.keys() != seeds[0].keys() for seed in seeds):
            raise ValueError("the seeds of a system have different queries")
    comparison = compare_runs(_average_seeds(a), _average_seeds(b), permutations=permutations, resamples=resamples)
    if len(a) == len(b) == 1 or len(comparison.differences) < 2:
        return comparison
    differences = np.array(list(comparison.differences.values()))
    parts = [_VariancePart(float(differences.var(ddof=1)) / len(differences), len(differences) - 1)]
    values_a, values_b = _arrange_values(a), _arrange_values(b)
    for values in [values_b - values_a] if len(a) == len(b) else [values_a, values_b]:
        parts += _list_seed_parts(values)
    return _widen_comparison(comparison, parts)


def _average_seeds(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {query_id: math.fsum(seed[query_id] for seed in seeds) / len(seeds) for query_id in seeds[0]}


def _arrange_values(seeds: Sequence[Mapping[str, float]]) -> Floats:
    """Return a row for each query, in the order of their ids, and a column for each seed."""
    return np.array([[seed[query_id] for seed in seeds] for query_id in sorted(seeds[0])])


def _list_seed_parts(values: Floats) -> list[_VariancePart]:
    """Return what seeds add to the variance of the mean, beyond what changes from query to query. It may be nothing.

    The second part is negative: the mean square of seeds also contains that of the residuals.
    """
    query_count, seed_count = values.shape
    if seed_count == 1:
        return []
    query_means = values.mean(axis=1, keepdims=True)
    seed_means = values.mean(axis=0, keepdims=True)
    residuals = values - query_means - seed_means + values.mean()
    residual_freedom = (query_count - 1) * (seed_count - 1)
    seed_variance = float(seed_means.var(ddof=1)) / seed_count
    residual_variance = float((residuals**2).sum()) / residual_freedom / values.size
    if seed_variance <= residual_variance:
        return []
    return [_VariancePart(seed_variance, seed_count - 1), _VariancePart(-residual_variance, residual_freedom)]


def _widen_comparison(comparison: Comparison, parts: Sequence[_VariancePart]) -> Comparison:
    """Return the comparison with the p-value and the interval of a t-test whose variance is the sum of `parts`."""
    from scipy.stats import t

    variance = sum(part.variance for part in parts)
    error = math.sqrt(variance)
    if error < TIE_TOLERANCE:
        return comparison
    degrees_of_freedom = variance**2 / sum(part.variance**2 / part.degrees_of_freedom for part in parts)
    half_width = float(t.ppf(0.975, degrees_of_freedom)) * error
    p_value = 2 * float(t.sf(abs(comparison.difference) / error, degrees_of_freedom))
    return replace(
        comparison,
        p_value=max(comparison.p_value, p_value),
        interval=(max(-1.0, comparison.difference - half_width), min(1.0, comparison.difference + half_width)),
    )
