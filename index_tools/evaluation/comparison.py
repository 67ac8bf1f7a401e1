"""Comparison of two runs, query by query, so that easy and hard queries do not drown the difference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from querylift.index_tools.evaluation.corrections import correct_p_values
from querylift.plugin.errors import MissingExtra

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError as error:
    raise MissingExtra("numpy", "index") from error

Floats = NDArray[np.float64]

TIE_TOLERANCE = 1e-9
"""A difference closer to zero than this is a tie."""
SIGNIFICANCE_LEVEL = 0.05
"""A p-value below this counts as a difference."""
MAX_LISTED_QUERIES = 10
"""The number of worst and of best queries that are listed."""

Verdict = Literal["helps", "harms", "no measurable difference"]

_MAX_EXACT_DIFFERENCES = 16
"""With this many differences other than zero or fewer, all 2**n sign patterns are summed."""
_CHUNK_NUMBERS = 1 << 20
"""The number of floats in one random sample: 8 MB."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run b compared with run a over the same queries. Differences are b minus a, so b is better above zero."""

    mean_a: float
    mean_b: float
    p_value: float
    """Two-sided: how often chance alone makes a difference at least this large. It is not corrected."""
    interval: tuple[float, float]
    """95% of the bootstrap means of the difference lie between these two. It is not corrected."""
    differences: Mapping[str, float]
    """Query id to difference: the greatest loss first, equal ones by query id. A tie is exactly 0."""
    corrected_p_value: float | None = None
    """`p_value` after Holm's correction over the comparisons that were made together. None when it stands alone."""

    @property
    def deciding_p_value(self) -> float:
        """The corrected p-value, or the only one when the comparison stands alone."""
        return self.p_value if self.corrected_p_value is None else self.corrected_p_value

    @property
    def difference(self) -> float:
        """The mean of run b minus the mean of run a."""
        return self.mean_b - self.mean_a

    @property
    def wins(self) -> int:
        """The number of queries that b answers better."""
        return sum(difference > 0 for difference in self.differences.values())

    @property
    def ties(self) -> int:
        """The number of queries that a and b answer equally well."""
        return sum(difference == 0 for difference in self.differences.values())

    @property
    def losses(self) -> int:
        """The number of queries that b answers worse."""
        return sum(difference < 0 for difference in self.differences.values())

    @property
    def worst(self) -> tuple[tuple[str, float], ...]:
        """(query id, difference) of the ten greatest losses or fewer, the greatest first."""
        losses = ((query_id, difference) for query_id, difference in self.differences.items() if difference < 0)
        return tuple(losses)[:MAX_LISTED_QUERIES]

    @property
    def best(self) -> tuple[tuple[str, float], ...]:
        """(query id, difference) of the ten greatest wins or fewer, the greatest first."""
        wins = ((query_id, difference) for query_id, difference in self.differences.items() if difference > 0)
        return tuple(sorted(wins, key=lambda win: (-win[1], win[0])))[:MAX_LISTED_QUERIES]

    @property
    def verdict(self) -> Verdict:
        """The direction of the difference when the deciding p < 0.05, and "no measurable difference" otherwise."""
        if self.deciding_p_value >= SIGNIFICANCE_LEVEL:
            return "no measurable difference"
        return "helps" if self.difference > 0 else "harms"


def compare_runs(
    a: Mapping[str, float],
    b: Mapping[str, float],
    *,
    seed: int = 0,
    permutations: int = 100_000,
    resamples: int = 10_000,
) -> Comparison:
    """Compare the values of run b, by query id, with those of run a, the baseline.

    The p-value is that of the paired randomisation test (Smucker, Allan and Carterette, 2007). The test flips the sign
    of each difference at random. p is the share of sign patterns whose sum lies at least as far from zero as the
    observed sum. With at most 16 differences other than zero, the test counts all 2**n patterns. Otherwise it draws
    `permutations` patterns, and p is (1 + extreme patterns) / (1 + permutations), which is never 0.

    The interval is a bootstrap: the 2.5th to 97.5th percentile of the mean, over `resamples` draws of as many queries
    with replacement. The same seed gives the same result.

    Raises ValueError when there are no queries, or the runs have different queries. It also does so when a value is not
    finite, or a count is below 1.
    """
    if permutations < 1 or resamples < 1:
        raise ValueError(f"permutations is {permutations} and resamples is {resamples}; use 1 or more")
    differences = calculate_differences(a, b)
    array = np.array(list(differences.values()))
    rng = np.random.default_rng(seed)
    return Comparison(
        mean_a=math.fsum(a.values()) / len(a),
        mean_b=math.fsum(b.values()) / len(b),
        p_value=_calculate_p_value(array[array != 0], rng, permutations),
        interval=_calculate_interval(array, rng, resamples),
        differences=differences,
    )


def correct_comparisons(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """Return comparisons that were made together, with their p-values corrected. A single one stays as it is."""
    if len(comparisons) < 2:
        return dict(comparisons)
    corrected = correct_p_values([comparison.p_value for comparison in comparisons.values()])
    return {
        key: replace(comparison, corrected_p_value=p_value)
        for (key, comparison), p_value in zip(comparisons.items(), corrected, strict=True)
    }


def calculate_differences(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """Return b minus a by query id, the greatest loss first. Raises ValueError when the runs cannot be compared."""
    if not a and not b:
        raise ValueError("there are no queries to compare")
    if a.keys() != b.keys():
        raise ValueError(f"the runs have different queries: {len(a.keys() ^ b.keys())} of them are in one run only")
    if not all(map(math.isfinite, (*a.values(), *b.values()))):
        raise ValueError("a value to compare is not a finite number")
    exact = {query_id: b[query_id] - a[query_id] for query_id in a}
    differences = {query_id: value if abs(value) >= TIE_TOLERANCE else 0.0 for query_id, value in exact.items()}
    return dict(sorted(differences.items(), key=lambda item: (item[1], item[0])))


def _calculate_p_value(differences: Floats, rng: np.random.Generator, permutations: int) -> float:
    """Return the p-value of differences other than zero, and 1.0 when there are none."""
    if len(differences) <= _MAX_EXACT_DIFFERENCES:
        sums = _enumerate_signed_sums(differences)
        return float(_count_extreme_sums(sums, differences) / len(sums))
    samples = _sample_signed_sums(differences, rng, permutations)
    return (1 + sum(_count_extreme_sums(sums, differences) for sums in samples)) / (1 + permutations)


def _count_extreme_sums(sums: Floats, differences: Floats) -> int:
    """Count the sums that lie as far from zero as the observed one. The tolerance absorbs rounding errors."""
    return int((abs(sums) >= abs(differences.sum()) - TIE_TOLERANCE).sum())


def _enumerate_signed_sums(differences: Floats) -> Floats:
    """Return the sums of all 2**n sign patterns."""
    sums: Floats = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    return sums


def _sample_signed_sums(differences: Floats, rng: np.random.Generator, permutations: int) -> Iterator[Floats]:
    """Yield the sums of `permutations` random sign patterns, in chunks."""
    byte_count = (len(differences) + 7) // 8
    for rows in _split_rows(permutations, len(differences)):
        random_bytes = rng.integers(0, 256, size=(rows, byte_count), dtype=np.uint8)
        flips = np.unpackbits(random_bytes, axis=1, count=len(differences))
        yield differences.sum() - 2 * (flips @ differences)


def _calculate_interval(differences: Floats, rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile of the bootstrap means."""
    low, high = np.percentile(_bootstrap_means(differences, rng, resamples), [2.5, 97.5])
    return float(low), float(high)


def _bootstrap_means(differences: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Return the means of `resamples` draws of as many differences, with replacement."""
    count = len(differences)
    chunks = (rng.integers(0, count, size=(rows, count)) for rows in _split_rows(resamples, count))
    return np.concatenate([differences[chunk].mean(axis=1) for chunk in chunks])


def _split_rows(rows: int, width: int) -> Iterator[int]:
    """Split `rows` into counts so that a table of `width` columns holds at most `_CHUNK_NUMBERS` numbers."""
    step = max(1, _CHUNK_NUMBERS // width)
    for start in range(0, rows, step):
        yield min(step, rows - start)
