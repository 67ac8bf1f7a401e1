"""How well two raters agree on the same pairs, and whether two judges rank systems alike. Standard library only."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations

GradePair = tuple[int, int]
"""The grades that two raters gave to the same pair of query and document."""


def compute_kappa(first: Sequence[int], second: Sequence[int], grades: Collection[int]) -> float:
    """Return Cohen's kappa (1960) of two raters who graded the same pairs: (observed - chance) / (1 - chance).

    `observed` is the share of pairs with equal grades. `chance` is the sum over `grades` of the product of the shares
    that each rater gave that grade. Kappa is 0 when both raters gave one and the same grade to all pairs, because such
    grades show no agreement beyond chance.

    Raises ValueError when there are no pairs, the lengths differ, or a grade is not in `grades`.
    """
    return compute_confusion_kappa(count_confusions(first, second, sorted(set(grades))))


def compute_macro_f1(first: Sequence[int], second: Sequence[int], grades: Collection[int]) -> float:
    """Return the mean F1 over the grades that at least one rater gave. It is the same with the raters swapped.

    The F1 of a grade is 2 * both / (first + second): the pairs with that grade from both raters, and from each.
    Raises ValueError as `compute_kappa` does.
    """
    return compute_confusion_f1(count_confusions(first, second, sorted(set(grades))))


def compute_kendall_tau(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Return Kendall's tau-b between the scores of the same systems by two judges, from -1 to 1.

    tau-b is (concordant - discordant) / sqrt(untied in first * untied in second), over all pairs of systems. It is 0 when
    one judge gives all systems the same score. Raises ValueError below two systems, or when the systems differ.
    """
    if first.keys() != second.keys() or len(first) < 2:
        raise ValueError(
            f"{len(first)} and {len(second)} systems cannot be compared; give the scores of the same two systems or more"
        )
    surplus = first_untied = second_untied = 0
    for a, b in combinations(first, 2):
        first_sign, second_sign = _get_sign(first[a] - first[b]), _get_sign(second[a] - second[b])
        surplus += first_sign * second_sign
        first_untied += abs(first_sign)
        second_untied += abs(second_sign)
    return surplus / math.sqrt(first_untied * second_untied) if first_untied and second_untied else 0.0


def count_confusions(first: Sequence[int], second: Sequence[int], grades: Sequence[int]) -> list[list[int]]:
    """Return how many pairs have each combination of grades: one row for each grade of `first`, a column for `second`.

    Raises ValueError as `compute_kappa` does.
    """
    _check_grades(first, second, grades)
    counts = Counter(zip(first, second, strict=True))
    return [[counts[row, column] for column in grades] for row in grades]


def compute_confusion_kappa(confusions: Sequence[Sequence[float]]) -> float:
    """Return the kappa of `compute_kappa` from the counts of `count_confusions`. They may not all be 0."""
    count = math.fsum(map(math.fsum, confusions))
    observed = math.fsum(row[position] for position, row in enumerate(confusions)) / count
    columns = zip(*confusions, strict=True)
    chance = math.fsum(math.fsum(row) * math.fsum(column) for row, column in zip(confusions, columns, strict=True))
    chance /= count**2
    return 0.0 if chance == 1 else (observed - chance) / (1 - chance)


def compute_confusion_f1(confusions: Sequence[Sequence[float]]) -> float:
    """Return the mean F1 of `compute_macro_f1` from the counts of `count_confusions`. They may not all be 0."""
    columns = zip(*confusions, strict=True)
    sums = [math.fsum(row) + math.fsum(column) for row, column in zip(confusions, columns, strict=True)]
    f1_values = [2 * confusions[position][position] / total for position, total in enumerate(sums) if total]
    return math.fsum(f1_values) / len(f1_values)


def bootstrap_interval(
    pairs_by_query: Mapping[str, Sequence[GradePair]],
    measure: Callable[[Sequence[int], Sequence[int]], float],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile of `measure` over draws of as many queries, with replacement.

    Whole queries are drawn, because the pairs of one query depend on each other. The percentiles are of nearest rank.
    The same seed gives the same interval. Raises ValueError when there are no queries or a count is below 1.
    """
    groups = [pairs for pairs in pairs_by_query.values() if pairs]
    if not groups or resamples < 1:
        raise ValueError(f"{len(groups)} queries and {resamples} draws give no interval; give one of each or more")
    rng = random.Random(seed)
    values = []
    for _ in range(resamples):
        drawn_pairs = [pair for group in rng.choices(groups, k=len(groups)) for pair in group]
        values.append(measure([a for a, _ in drawn_pairs], [b for _, b in drawn_pairs]))
    values.sort()
    return values[int(0.025 * (resamples - 1))], values[math.ceil(0.975 * (resamples - 1))]


def _check_grades(first: Sequence[int], second: Sequence[int], grades: Collection[int]) -> None:
    if not first or len(first) != len(second):
        raise ValueError(
            f"{len(first)} and {len(second)} grades cannot be compared; give both raters' grades of the same pairs"
        )
    unknown_grades = sorted({*first, *second} - set(grades))
    if unknown_grades:
        raise ValueError(f"grade {unknown_grades[0]} is off the scale; use {sorted(set(grades))}")


def _get_sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)
