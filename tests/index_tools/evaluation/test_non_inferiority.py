"""The test of the gate: by hand where it is simple, against random weights where not, and its size by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from querylift.index_tools.evaluation.comparison import Floats
from querylift.index_tools.evaluation.non_inferiority import (
    check_non_inferiority,
    correct_tests,
    count_needed_queries,
)

REPETITIONS = 3000


def create_runs(*differences: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return two runs with values from 0 to 1 that differ by `differences` at queries q0, q1, ..."""
    a = {f"q{i}": max(0.0, -difference) for i, difference in enumerate(differences)}
    return a, {f"q{i}": max(0.0, difference) for i, difference in enumerate(differences)}


def draw_weighted_means(differences: Floats, draws: int) -> Floats:
    """Return means with random weights, in which one more query lost everything."""
    weights = np.random.default_rng(3).dirichlet(np.ones(len(differences) + 1), draws)
    means: Floats = weights @ np.append(differences, -1)
    return means


def measure_pass_rate(
    queries: int, bound: float, losses: dict[float, float], *, repetitions: int = REPETITIONS
) -> float:
    """Return how often samples of differences pass the test. Equal samples are tested once."""
    samples = np.random.default_rng(5).multinomial(queries, list(losses.values()), repetitions)
    distinct_samples, repeats = np.unique(samples, axis=0, return_counts=True)
    passes = [
        check_non_inferiority(*create_runs(*np.repeat(list(losses), sample)), bound=bound).is_non_inferior
        for sample in distinct_samples
    ]
    return float(np.average(passes, weights=repeats))


def test_two_identical_queries_prove_nothing() -> None:
    test = check_non_inferiority(*create_runs(0.0, 0.0), bound=0.005)
    assert test.p_value == pytest.approx(0.995**2)
    assert not test.is_non_inferior


@pytest.mark.parametrize(("queries", "passes"), [(597, False), (598, True)])
def test_without_any_difference_598_queries_are_needed_for_half_a_point(queries: int, passes: bool) -> None:
    test = check_non_inferiority(*create_runs(*[0.0] * queries), bound=0.005)
    assert test.p_value == pytest.approx(0.995**queries)
    assert test.is_non_inferior == passes
    assert (count_needed_queries(0.005) <= queries) == passes


@pytest.mark.parametrize(("bound", "levels", "needed"), [(0.005, 5, 919), (0.01, 1, 299), (0.01, 5, 459), (0.5, 1, 5)])
def test_more_levels_need_more_queries_and_a_larger_bound_needs_fewer(bound: float, levels: int, needed: int) -> None:
    assert count_needed_queries(bound, test_count=levels) == needed
    assert levels * (1 - bound) ** needed < 0.05 <= levels * (1 - bound) ** (needed - 1)


def test_for_queries_that_lose_everything_it_is_the_exact_binomial_test() -> None:
    test = check_non_inferiority(*create_runs(*[-1.0] * 3, *[0.0] * 97), bound=0.1)
    assert test.p_value == pytest.approx(binom.cdf(3, 100, 0.1))


def test_the_p_value_is_the_share_of_random_weightings_that_lose_the_bound() -> None:
    differences = np.random.default_rng(7).normal(-0.01, 0.1, 60)
    test = check_non_inferiority(*create_runs(*differences), bound=0.05)
    assert test.p_value == pytest.approx(np.mean(draw_weighted_means(differences, 100_000) <= -0.05), abs=0.005)


def test_the_lower_end_is_the_bound_at_which_the_test_would_just_pass() -> None:
    differences = np.random.default_rng(7).normal(-0.01, 0.1, 60)
    lower = check_non_inferiority(*create_runs(*differences), bound=0.05).lower
    assert lower == pytest.approx(np.percentile(draw_weighted_means(differences, 100_000), 5), abs=0.001)
    assert check_non_inferiority(*create_runs(*differences), bound=-lower).p_value == pytest.approx(0.05)


def test_a_loss_at_every_query_that_is_beyond_the_bound_is_inferior() -> None:
    test = check_non_inferiority(*create_runs(*[-0.006] * 1000), bound=0.005)
    assert (test.is_non_inferior, test.p_value) == (False, 1.0)


def test_a_gain_at_every_query_is_not_inferior() -> None:
    test = check_non_inferiority(*create_runs(*[0.02] * 1000), bound=0.005)
    assert test.is_non_inferior
    assert -0.005 < test.lower < 0.02


def test_several_tests_are_corrected_for_their_number() -> None:
    tests = [check_non_inferiority(*create_runs(*[0.0] * queries), bound=0.005) for queries in (700, 800)]
    assert [test.is_non_inferior for test in tests] == [True, True]
    together = correct_tests(tests)
    assert [test.corrected_p_value for test in together] == pytest.approx([2 * 0.995**800] * 2), (
        "Holm's p-values keep their order"
    )
    assert [test.p_value for test in together] == [test.p_value for test in tests]
    assert [test.is_non_inferior for test in correct_tests(tests * 3)] == [False, False] * 3


@pytest.mark.parametrize(
    ("queries", "bound", "losses"),
    [
        (700, 0.005, {-1.0: 0.005, 0.0: 0.995}),
        (700, 0.005, {-0.5: 0.01, 0.0: 0.99}),
        (700, 0.005, {-0.1: 0.05, 0.0: 0.95}),
        (40, 0.1, {-0.8: 0.2, 0.075: 0.8}),
        (40, 0.1, {-0.6: 0.2, 0.0: 0.6, 0.1: 0.2}),
    ],
)
def test_a_level_whose_losses_add_up_to_the_bound_passes_at_most_one_time_in_twenty(
    queries: int, bound: float, losses: dict[float, float]
) -> None:
    """`losses` maps each difference to its probability. A test that passes in 8% of cases would fail here."""
    assert sum(value * share for value, share in losses.items()) == pytest.approx(-bound)
    assert measure_pass_rate(queries, bound, losses) < 0.062


def test_a_level_that_loses_nothing_passes_with_enough_queries() -> None:
    assert measure_pass_rate(1200, 0.005, {-0.2: 0.02, 0.0: 0.96, 0.2: 0.02}, repetitions=40) > 0.5


@pytest.mark.parametrize("bound", [0, 1, -0.1])
def test_a_bound_that_is_no_loss_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="give the largest acceptable loss, a number above 0 and below 1"):
        check_non_inferiority(*create_runs(0.1), bound=bound)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({}, {}, "no queries"),
        ({"x": 0.1}, {"y": 0.1}, "2 of them are in one run only"),
        ({"x": 0.1}, {"x": float("nan")}, "not a finite number"),
        ({"x": 0.1}, {"x": 1.5}, "is 1.5; non-inferiority is tested on measures from 0 to 1"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(a: dict[str, float], b: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_non_inferiority(a, b, bound=0.1)
