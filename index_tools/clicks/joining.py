"""Find the search that each click belongs to."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from querylift.index_tools.clicks.click_events import Click
from querylift.index_tools.clicks.search_log import LoggedSearch, iterate_distinct_searches
from querylift.plugin.expansion import normalize_query
from querylift.plugin.proxy.query_records.record import hash_query

JOIN_WINDOW_S = 1800
"""A click without the id of its search belongs to the user's last search for the same query in this time."""


@dataclass(frozen=True, slots=True)
class ClickedSearch:
    """A search with its clicks, which may be none."""

    search: LoggedSearch
    clicks: tuple[Click, ...]


@dataclass(frozen=True, slots=True)
class JoinedLog:
    """The searches with their clicks. `joined_by_query_count` clicks had no id of a search. `lost_count` fit no search.

    `mixed_unit_count` users had searches in more than one group, and are left out.
    """

    searches: tuple[ClickedSearch, ...]
    click_count: int
    joined_by_query_count: int
    lost_count: int
    mixed_unit_count: int


def join_clicks(searches: Sequence[LoggedSearch], clicks: Iterable[Click]) -> JoinedLog:
    """Give each click to its search: by `query_id`, or else by client, query and time."""
    distinct_searches = list(iterate_distinct_searches(searches))
    search_ids = {search.query_id for search in distinct_searches}
    by_query = _QueryIndex(distinct_searches)
    clicks_of_search: defaultdict[str, list[Click]] = defaultdict(list)
    joined_by_query_count = lost_count = 0
    for click in clicks:
        query_id = click.query_id or by_query.find_query_id(click)
        if query_id not in search_ids:
            lost_count += 1
            continue
        joined_by_query_count += not click.query_id
        clicks_of_search[query_id].append(click)
    mixed_units = _find_mixed_units(distinct_searches)
    joined_searches = tuple(
        ClickedSearch(search, tuple(clicks_of_search[search.query_id]))
        for search in distinct_searches
        if search.unit not in mixed_units
    )
    click_count = sum(map(len, clicks_of_search.values()))
    return JoinedLog(joined_searches, click_count, joined_by_query_count, lost_count, len(mixed_units))


def _find_mixed_units(searches: Iterable[LoggedSearch]) -> set[str]:
    """Return the users with searches in the control group and in another. They changed groups when a setting changed."""
    groups: defaultdict[str, set[bool]] = defaultdict(set)
    for search in searches:
        groups[search.unit].add(search.variant == "control")
    return {unit for unit, is_control in groups.items() if len(is_control) > 1}


class _QueryIndex:
    """The searches by client and query, in the order of time."""

    def __init__(self, searches: Iterable[LoggedSearch]) -> None:
        self._searches: defaultdict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
        for search in searches:
            if search.client_id and search.user_query and search.time_s is not None:
                key = search.client_id, normalize_query(search.user_query)
                self._searches[key].append((search.time_s, search.query_id))
        for timed_ids in self._searches.values():
            timed_ids.sort()

    def find_query_id(self, click: Click) -> str:
        """Return the id of the click's search, or "". The log may have the query's text or its hash."""
        if click.time_s is None:
            return ""
        query = normalize_query(click.user_query)
        for text in (query, hash_query(query)):
            timed_ids = self._searches.get((click.client_id, text), [])
            position = bisect_right(timed_ids, click.time_s, key=lambda timed_id: timed_id[0])
            if position and click.time_s - timed_ids[position - 1][0] <= JOIN_WINDOW_S:
                return timed_ids[position - 1][1]
        return ""
