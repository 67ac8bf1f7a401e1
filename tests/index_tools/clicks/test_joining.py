"""Each click is given to its search, by the id of the search or else by client, query and time."""

from dataclasses import replace

import pytest

from querylift.index_tools.clicks.click_events import Click
from querylift.index_tools.clicks.joining import join_clicks
from querylift.index_tools.clicks.search_log import LoggedSearch
from querylift.index_tools.clicks.team_votes import Votes, compare_teams
from querylift.plugin.proxy.query_records.record import hash_query

SEARCH = LoggedSearch("q1", "anna", "shop", "expanded", 0.5, True, client_id="c1", user_query="red shoes", time_s=1000)


def _count_clicks(searches: list[LoggedSearch], click: Click) -> dict[str, int]:
    return {search.search.query_id: len(search.clicks) for search in join_clicks(searches, [click]).searches}


def test_a_click_belongs_to_the_search_with_its_id() -> None:
    searches = [SEARCH, replace(SEARCH, query_id="q2")]
    assert _count_clicks(searches, Click("q2")) == {"q1": 0, "q2": 1}


def test_a_click_with_an_unknown_id_is_counted_as_lost() -> None:
    joined = join_clicks([SEARCH], [Click("q9"), Click("q1")])
    assert (joined.click_count, joined.lost_count) == (1, 1)


@pytest.mark.parametrize("logged_query", ["red shoes", hash_query("red shoes")])
def test_a_click_without_an_id_belongs_to_the_last_search_for_its_query(logged_query: str) -> None:
    first_search = replace(SEARCH, user_query=logged_query)
    searches = [replace(first_search, query_id="q2", time_s=1500), first_search]
    click = Click("", client_id="c1", user_query="red  shoes", time_s=1600)
    assert _count_clicks(searches, click) == {"q1": 0, "q2": 1}
    assert _count_clicks(searches, replace(click, time_s=1400)) == {"q1": 1, "q2": 0}


@pytest.mark.parametrize(
    "change", [{"time_s": 2801.0}, {"time_s": 999.0}, {"client_id": "c2"}, {"user_query": "blue shoes"}]
)
def test_a_click_of_another_client_query_or_time_belongs_to_no_search(change: dict[str, float | str]) -> None:
    click = Click("", client_id="c1", user_query="red shoes", time_s=1100)
    assert join_clicks([SEARCH], [click]).joined_by_query_count == 1
    assert join_clicks([SEARCH], [replace(click, **change)]).lost_count == 1  # type: ignore[arg-type]


def test_pages_that_share_an_id_are_one_search() -> None:
    first_page = replace(SEARCH, variant="interleaved", teams="oe", hit_ids=("a", "b"))
    joined = join_clicks([SEARCH, first_page, SEARCH], [Click("q1", "b")])
    assert [search.search.variant for search in joined.searches] == ["interleaved"]


def test_users_in_both_groups_are_left_out() -> None:
    joined = join_clicks([SEARCH, replace(SEARCH, query_id="q2", variant="control")], [])
    assert (joined.searches, joined.mixed_unit_count) == ((), 1)


def test_a_user_votes_for_the_list_that_won_more_of_his_searches() -> None:
    searches = [
        replace(SEARCH, query_id=f"q{i}", variant="interleaved", teams="=oe", hit_ids=("a", "b", "c")) for i in range(5)
    ]
    searches[4] = replace(searches[4], unit="bert")
    clicks = [
        Click("q0", "c"), Click("q1", "sku-9", 3), Click("q2", "b"), Click("q3", "a"), Click("q4", "b"), Click("q4", "c"),
        Click("q4", "sku-9", 17),
    ]  # fmt: skip
    comparison = compare_teams(join_clicks(searches, clicks).searches)
    assert comparison.searches == Votes(expanded=2, original=1, ties=2)
    assert comparison.users == Votes(expanded=1, original=0, ties=1)
    assert comparison.unassigned_clicks == 1
