"""A p-value of a system with several seeds covers seeds and queries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from querylift.index_tools.evaluation.comparison import Floats, compare_runs
from querylift.index_tools.evaluation.seed_comparison import compare_seeds

REPETITIONS = 500


def create_seeds(values: Floats) -> list[dict[str, float]]:
    """Return a seed for each column of `values`, whose rows are queries."""
    return [{f"q{i}": float(value) for i, value in enumerate(column)} for column in values.T]


def create_plain(seeds: list[dict[str, float]]) -> list[dict[str, float]]:
    return [dict.fromkeys(seeds[0], 0.0)]


def test_systems_with_one_seed_are_compared_by_the_test_over_queries() -> None:
    a, b = {"q1": 0.1, "q2": 0.4}, {"q1": 0.3, "q2": 0.5}
    assert compare_seeds([a], [b]) == compare_runs(a, b)


def test_the_p_value_and_the_interval_are_those_computed_by_hand() -> None:
    # Two seeds of four queries, against 0. Seed means .2 and .4, query means .1 .3 .3 .5, mean .3.
    seeds = create_seeds(np.array([[0.0, 0.2], [0.2, 0.4], [0.25, 0.35], [0.35, 0.65]]))
    query_part = (0.04 + 0.04) / 3 / 4
    seed_part = (0.01 + 0.01) / 1 / 2
    # Residuals: 0 for the first two queries, and .05 or -.05 for the other two.
    residual_part = 4 * 0.0025 / 3 / 8
    variance = query_part + seed_part - residual_part
    freedom = variance**2 / (query_part**2 / 3 + seed_part**2 / 1 + residual_part**2 / 3)
    compared = compare_seeds(create_plain(seeds), seeds)
    expected = 2 * t.sf(0.3 / math.sqrt(variance), freedom)
    assert expected > 2 / 16, "the randomisation test over queries alone has 2 of 16 patterns"
    assert compared.p_value == pytest.approx(expected)
    half_width = t.ppf(0.975, freedom) * math.sqrt(variance)
    assert compared.interval == pytest.approx((0.3 - half_width, 0.3 + half_width))


def test_a_gain_of_one_lucky_seed_is_not_called_a_difference() -> None:
    queries = np.random.default_rng(2).normal(0.0, 0.05, (100, 1))
    seeds = create_seeds(queries + np.array([[0.0, 0.0, 0.15]]))
    means = {query_id: sum(seed[query_id] for seed in seeds) / 3 for query_id in seeds[0]}
    assert compare_runs(create_plain(seeds)[0], means).verdict == "helps"
    assert compare_seeds(create_plain(seeds), seeds).verdict == "no measurable difference"


def test_a_gain_of_every_seed_helps() -> None:
    seeds = create_seeds(np.random.default_rng(3).normal(0.05, 0.1, (100, 3)))
    compared = compare_seeds(create_plain(seeds), seeds)
    assert compared.verdict == "helps"
    assert 0 < compared.interval[0] < 0.05 < compared.interval[1] < 0.1


def test_seeds_that_do_not_differ_give_no_smaller_p_value_than_one_seed() -> None:
    seed = {f"q{i}": value for i, value in enumerate([0.1, 0.2, 0.3, 0.0])}
    alone = compare_seeds(create_plain([seed]), [seed])
    assert compare_seeds(create_plain([seed]), [seed, seed, seed]).p_value >= alone.p_value


def test_queries_that_all_gain_the_same_keep_the_p_value_over_queries() -> None:
    seeds = create_seeds(np.full((6, 2), 0.1))
    assert compare_seeds(create_plain(seeds), seeds).p_value == 2 / 64


def test_one_query_shows_nothing() -> None:
    assert compare_seeds([{"q": 0.0}], [{"q": 0.5}, {"q": 0.6}]).p_value == 1.0


def test_seeds_of_two_systems_are_paired_when_they_are_equally_many() -> None:
    rng = np.random.default_rng(4)
    first = rng.normal(0.3, 0.05, (50, 3)) + np.array([[0.0, 0.1, 0.2]])
    second = first + rng.normal(0.02, 0.01, (50, 3))
    assert compare_seeds(create_seeds(first), create_seeds(second)).verdict == "helps"
    # One seed more, and they are two samples of seeds that differ by more than 0.02 among themselves.
    third = np.hstack([second, second.mean(axis=1, keepdims=True)])
    assert compare_seeds(create_seeds(first), create_seeds(third)).verdict == "no measurable difference"


@pytest.mark.parametrize("seed_deviation", [0.0, 0.02])
def test_about_one_in_twenty_is_called_a_difference_where_there_is_none(seed_deviation: float) -> None:
    rng = np.random.default_rng(1)
    called, called_over_queries = 0, 0
    for _ in range(REPETITIONS):
        values = rng.normal(0, 0.1, (60, 1)) + rng.normal(0, seed_deviation, (1, 3)) + rng.normal(0, 0.05, (60, 3))
        seeds = create_seeds(values)
        called += compare_seeds(create_plain(seeds), seeds, permutations=199, resamples=1).p_value < 0.05
        means = {f"q{i}": float(value) for i, value in enumerate(values.mean(axis=1))}
        alone = compare_runs(create_plain(seeds)[0], means, permutations=199, resamples=1)
        called_over_queries += alone.p_value < 0.05
    assert called / REPETITIONS < 0.075
    assert called_over_queries / REPETITIONS > 0.09 or not seed_deviation, "seeds are a source of chance"


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [{"q": 0.1}], "without a seed"),
        ([{"q": 0.1}], [{"q": 0.1}, {"other": 0.1}], "seeds of a system have different queries"),
        ([{"q": 0.1}], [{"other": 0.1}, {"other": 0.2}], "2 of them are in one run only"),
    ],
)
def test_seeds_that_cannot_be_compared_are_refused(
    a: list[dict[str, float]], b: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare_seeds(a, b)
