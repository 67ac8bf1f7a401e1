"""The intervals of simulated experiments hold what they promise."""

import math

import pytest
from scipy import stats

from querylift.index_tools.clicks.groups import compare_groups
from querylift.index_tools.clicks.joining import join_clicks
from querylift.index_tools.clicks.statistics import (
    calculate_share_p_value,
    calculate_sign_p_value,
    estimate_ratio,
    estimate_share,
)
from querylift.index_tools.clicks.team_votes import compare_teams
from tests.helpers.click_simulation import simulate_groups, simulate_teams


def test_the_variance_of_a_ratio_is_that_of_the_formula() -> None:
    """Two users with 1 click in 1 search and 0 clicks in 3: m = 1/4, residuals 3/4 and -3/4, kbar = 2."""
    ratio = estimate_ratio([1, 0], [1, 3])
    assert ratio.mean == 0.25
    assert ratio.variance == pytest.approx((9 / 16 + 9 / 16) / (2 * 1 * 4))


def test_one_user_has_no_variance() -> None:
    with pytest.raises(ValueError, match="two users"):
        estimate_ratio([1], [1])


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 3), (8, 2), (1, 12), (1300, 1200)])
def test_the_sign_test_is_that_of_scipy(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert calculate_sign_p_value(wins, losses) == pytest.approx(expected, abs=2e-3)


def test_the_test_of_the_groups_sizes_is_that_of_scipy() -> None:
    expected = stats.chisquare([60, 30], [45, 45]).pvalue
    assert calculate_share_p_value(60, 30, 0.5) == pytest.approx(expected)


def test_the_interval_of_a_share_is_that_of_scipy() -> None:
    interval = stats.binomtest(30, 50).proportion_ci(method="wilson")
    assert estimate_share(30, 20) == pytest.approx((0.6, interval.low, interval.high))


def test_intervals_of_equal_groups_hold_zero_in_95_of_100_experiments() -> None:
    """150 experiments without an effect. The searches of a user depend on each other, which a test by search would miss."""
    holds = 0
    for seed in range(1000, 1150):
        searches, clicks = simulate_groups(seed, users=200)
        difference = compare_groups(join_clicks(searches, clicks).searches, 0.5).differences["clicks_per_search"]
        holds += difference.low <= 0 <= difference.high
    assert 0.92 <= holds / 150 <= 0.99


def test_a_difference_of_the_detectable_size_is_seen_four_times_out_of_five() -> None:
    verdicts, detectable, differences = [], [], []
    for seed in range(60):
        searches, clicks = simulate_groups(seed, users=300, lift=0.118)
        comparison = compare_groups(join_clicks(searches, clicks).searches, 0.5)
        verdicts.append(comparison.verdict)
        detectable.append(comparison.differences["clicks_per_search"].detectable)
        differences.append(comparison.differences["clicks_per_search"].value)
    assert math.fsum(differences) == pytest.approx(math.fsum(detectable), rel=0.1)
    assert set(verdicts) == {"rose", "no difference seen"}
    assert verdicts.count("rose") / 60 == pytest.approx(0.8, abs=0.12)


def test_equal_lists_win_in_no_more_than_5_of_100_experiments() -> None:
    verdicts = [compare_teams(join_clicks(*simulate_teams(seed, users=60)).searches).verdict for seed in range(100)]
    assert set(verdicts) >= {"no difference seen"}
    assert verdicts.count("no difference seen") >= 92


def test_a_list_that_users_prefer_wins() -> None:
    comparison = compare_teams(join_clicks(*simulate_teams(1, users=300, preference=0.65)).searches)
    assert comparison.verdict == "expanded wins"
    assert (
        compare_teams(join_clicks(*simulate_teams(1, users=300, preference=0.35)).searches).verdict == "original wins"
    )
