"""Two lists become one as two captains choose their teams: in turns, each the best of its list that is left."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from querylift.plugin.dsl import UrlParameters
from querylift.plugin.interleave import Draft, can_interleave, draft_teams

LISTS = st.lists(st.integers(0, 30), unique=True, max_size=20)


def _name_hits(draft: Draft, original: list[int], expanded: list[int]) -> list[int]:
    return [(expanded if team == "e" else original)[position] for team, position in draft.picks]


@given(LISTS, LISTS, st.text(max_size=5))
def test_the_merged_list_is_a_team_draft(original: list[int], expanded: list[int], seed: str) -> None:
    draft = draft_teams(original, expanded, seed=seed)
    hits = _name_hits(draft, original, expanded)
    assert len(hits) == len(set(hits)) == max(len(original), len(expanded))
    counts = {"o": 0, "e": 0, "=": 0}
    for i, (team, hit) in enumerate(zip(draft.teams, hits, strict=True)):
        best = {name: next((x for x in ranked if x not in hits[:i]), None) for name, ranked in
                (("o", original), ("e", expanded))}  # fmt: skip
        if team == "=":
            assert original[: i + 1] == expanded[: i + 1] == hits[: i + 1]
        else:
            assert hit == best[team]
            other = "e" if team == "o" else "o"
            assert counts[team] <= counts[other] or best[other] is None
        counts[team] += 1


def test_the_same_seed_gives_the_same_list_and_seeds_differ() -> None:
    a, b = [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]
    drafts = {draft_teams(a, b, seed=f"user {i}").teams for i in range(64)}
    assert draft_teams(a, b, seed="anna") == draft_teams(a, b, seed="anna")
    assert len(drafts) == 8  # three coins decide


def test_each_team_begins_half_of_the_lists() -> None:
    first_teams = Counter(draft_teams([1, 2], [2, 1], seed=f"user {i}").teams[0] for i in range(1000))
    assert first_teams["o"] == pytest.approx(500, abs=60)


def test_hits_on_which_both_lists_agree_from_the_top_on_belong_to_no_team() -> None:
    assert draft_teams("abcd", "abdc", seed="x").teams[:2] == "=="
    assert draft_teams("abc", "abc", seed="x").teams == "==="
    assert draft_teams("ab", "abcd", seed="x").teams == "==ee"


def test_random_clicks_prefer_neither_list() -> None:
    """A user who clicks without looking gives both teams the same number of clicks, up to chance."""
    users = random.Random(7)
    clicks: Counter[str] = Counter()
    for i in range(4000):
        teams = draft_teams("abcdefgh", "acbzyxde", seed=f"user {i}").teams
        clicks[teams[min(int(users.expovariate(0.7)), len(teams) - 1)]] += 1
    assert clicks["o"] / (clicks["o"] + clicks["e"]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("keys", "allowed"),
    [
        ({}, True),
        ({"size": 100, "from": 0}, True),
        ({"size": 101}, False),
        ({"size": 1}, False),
        ({"size": "10"}, True),
        ({"size": -1}, False),
        ({"size": None}, False),
        ({"from": 10}, False),
        ({"aggs": {"brand": {"terms": {"field": "brand"}}}}, True),
        ({"highlight": {"fields": {"text": {}}}}, True),
        ({"collapse": {"field": "brand"}}, False),
        ({"sort": ["_score"]}, False),
        ({"search_after": [1]}, False),
        ({"pit": {"id": "x"}}, False),
        ({"suggest": {}}, False),
        ({"profile": True}, False),
        ({"explain": True}, False),
        ({"rescore": {}}, False),
        ({"terminate_after": 10}, False),
    ],
)
def test_only_first_pages_that_are_nothing_but_a_list_are_interleaved(keys: dict[str, object], allowed: bool) -> None:
    assert can_interleave({"query": {}} | keys, UrlParameters()) is allowed


def test_page_and_size_in_the_url_count_before_those_of_the_body() -> None:
    assert not can_interleave({"query": {}}, UrlParameters(from_="10"))
    assert not can_interleave({"query": {}}, UrlParameters(size="200"))
    assert can_interleave({"query": {}, "size": 200}, UrlParameters(size="20"))
