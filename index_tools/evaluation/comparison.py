"""Did it help? Two runs compared query by query, so that easy and hard queries do not drown the difference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from querylift.plugin.errors import MissingExtra

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError as error:
    raise MissingExtra("numpy", "index") from error

Floats = NDArray[np.float64]

TIE = 1e-9
"""A difference closer to zero than this is a tie."""
ALPHA = 0.05
"""A p-value below this is called a difference."""
LISTED = 10
"""How many of the worst and of the best queries are listed."""

Verdict = Literal["helps", "harms", "no measurable difference"]

_EXACT_UP_TO = 16
"""Differences other than zero up to which all 2**n sign patterns are summed."""
_CHUNK = 1 << 20
"""Numbers drawn at a time: 8 MB as floats."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run b set against run a over the same queries; differences are b minus a, so above zero b is better."""

    mean_a: float
    mean_b: float
    p_value: float
    """Two-sided; how often chance alone would part the runs at least this far."""
    interval: tuple[float, float]
    """95% of bootstrap means of the difference lie in here."""
    differences: Mapping[str, float]
    """Query id to difference, the greatest loss first, equal ones by query id. A tie is exactly 0."""

    @property
    def difference(self) -> float:
        """mean_b - mean_a."""
        return self.mean_b - self.mean_a

    @property
    def wins(self) -> int:
        """Queries that b answers better."""
        return sum(d > 0 for d in self.differences.values())

    @property
    def ties(self) -> int:
        """Queries that both answer equally well."""
        return sum(d == 0 for d in self.differences.values())

    @property
    def losses(self) -> int:
        """Queries that b answers worse."""
        return sum(d < 0 for d in self.differences.values())

    @property
    def worst(self) -> tuple[tuple[str, float], ...]:
        """(query id, difference) of at most ten losses, greatest first; fewer where fewer queries lost."""
        return tuple((q, d) for q, d in self.differences.items() if d < 0)[:LISTED]

    @property
    def best(self) -> tuple[tuple[str, float], ...]:
        """(query id, difference) of at most ten wins, greatest first; fewer where fewer queries won."""
        wins = ((q, d) for q, d in self.differences.items() if d > 0)
        return tuple(sorted(wins, key=lambda item: (-item[1], item[0])))[:LISTED]

    @property
    def verdict(self) -> Verdict:
        """The direction of the difference where p < 0.05; else none can be claimed."""
        if self.p_value >= ALPHA:
            return "no measurable difference"
        return "helps" if self.difference > 0 else "harms"


def compare(
    a: Mapping[str, float],
    b: Mapping[str, float],
    *,
    seed: int = 0,
    permutations: int = 100_000,
    resamples: int = 10_000,
) -> Comparison:
    """Compare per-query values of run b with those of run a, the baseline.

    The p-value is that of the paired randomisation test (Smucker, Allan and Carterette, 2007): each difference has its
    sign flipped at random, and p is the share of sign patterns whose sum lies at least as far from zero as the one
    seen. Where at most 16 differences are not zero, all 2**n patterns are counted; else `permutations` are drawn, and p
    is (1 + those as far) / (1 + drawn), which is never 0. The interval is the 2.5th to 97.5th percentile of the mean
    over `resamples` draws of as many queries with replacement. The same seed gives the same result.

    Raises ValueError where there are no queries, they are not the same in both, a value is not finite, or a count is
    below 1.
    """
    if permutations < 1 or resamples < 1:
        raise ValueError(f"permutations and resamples are 1 or more, not {permutations} and {resamples}")
    differences = _differences(a, b)
    d = np.array(list(differences.values()))
    rng = np.random.default_rng(seed)
    return Comparison(
        mean_a=math.fsum(a.values()) / len(a),
        mean_b=math.fsum(b.values()) / len(b),
        p_value=_p_value(d[d != 0], rng, permutations),
        interval=_interval(d, rng, resamples),
        differences=differences,
    )


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """Whether run b is worse than run a by less than `bound`, over the same queries."""

    bound: float
    difference: float
    """Mean of b minus a."""
    lower: float
    """95% of bootstrap means of the difference lie above this."""
    p_value: float
    """One-sided; how often chance alone would show so small a loss where the true one is `bound`."""

    @property
    def holds(self) -> bool:
        """Whether the whole one-sided interval lies above -bound."""
        return self.lower > -self.bound


def non_inferior(
    a: Mapping[str, float], b: Mapping[str, float], *, bound: float, seed: int = 0, resamples: int = 10_000
) -> NonInferiority:
    """Test that run b loses less than `bound` against run a, by the bootstrap of the mean of the paired differences.

    `lower` is the 5th percentile of the mean over `resamples` draws of as many queries with replacement, p the share of these
    means at or below -bound, counted as (1 + those) / (1 + resamples). No difference seen is no proof of none: with few
    queries the interval is wide, and the test fails. Raises ValueError as `compare` does, and where bound is not above 0.
    """
    if not bound > 0:
        raise ValueError(f"bound is {bound}; give the largest loss that is borne, above 0")
    d = np.array(list(_differences(a, b).values()))
    means = _resampled_means(d, np.random.default_rng(seed), resamples)
    return NonInferiority(
        bound=bound,
        difference=float(d.mean()),
        lower=float(np.percentile(means, 5)),
        p_value=(1 + int((means <= -bound).sum())) / (1 + resamples),
    )


def _differences(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    if not a and not b:
        raise ValueError("there are no queries to compare")
    if a.keys() != b.keys():
        raise ValueError(f"the runs are not over the same queries: {len(a.keys() ^ b.keys())} are in one only")
    if not all(map(math.isfinite, (*a.values(), *b.values()))):
        raise ValueError("a value to compare is not a finite number")
    differences = {q: b[q] - a[q] for q in a}
    untied = {q: d if abs(d) >= TIE else 0.0 for q, d in differences.items()}
    return dict(sorted(untied.items(), key=lambda item: (item[1], item[0])))


def _p_value(d: Floats, rng: np.random.Generator, permutations: int) -> float:
    """The p-value of differences `d`, none of them zero; 1.0 where there are none."""
    if len(d) <= _EXACT_UP_TO:
        sums = _all_signed_sums(d)
        return float(_as_far(sums, d) / len(sums))
    far = sum(_as_far(sums, d) for sums in _random_signed_sums(d, rng, permutations))
    return (1 + far) / (1 + permutations)


def _as_far(sums: Floats, d: Floats) -> int:
    """How many sums lie as far from zero as that of `d`; the slack is for sums that differ by rounding alone."""
    return int((abs(sums) >= abs(d.sum()) - TIE).sum())


def _all_signed_sums(d: Floats) -> Floats:
    sums: Floats = np.zeros(1)
    for difference in d:
        sums = np.concatenate([sums + difference, sums - difference])
    return sums


def _random_signed_sums(d: Floats, rng: np.random.Generator, permutations: int) -> Iterator[Floats]:
    packed = (len(d) + 7) // 8
    for rows in _chunks(permutations, len(d)):
        flips = np.unpackbits(rng.integers(0, 256, size=(rows, packed), dtype=np.uint8), axis=1, count=len(d))
        yield d.sum() - 2 * (flips @ d)


def _interval(d: Floats, rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    low, high = np.percentile(_resampled_means(d, rng, resamples), [2.5, 97.5])
    return float(low), float(high)


def _resampled_means(d: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    means = [d[rng.integers(0, len(d), size=(rows, len(d)))].mean(axis=1) for rows in _chunks(resamples, len(d))]
    return np.concatenate(means)


def _chunks(rows: int, width: int) -> Iterator[int]:
    """`rows` in parts that keep a table of `width` columns within `_CHUNK` numbers."""
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        yield min(step, rows - start)
