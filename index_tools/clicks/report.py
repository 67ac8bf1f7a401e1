"""What an experiment says, as lines for a terminal of 80 columns and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from querylift.index_tools.clicks.click_events import ClickFile
from querylift.index_tools.clicks.groups import MEASURES, Group, GroupComparison, Measure, compare_groups
from querylift.index_tools.clicks.joining import JOIN_WINDOW_S, JoinedLog
from querylift.index_tools.clicks.search_log import SearchLog
from querylift.index_tools.clicks.statistics import Difference
from querylift.index_tools.clicks.team_votes import MIN_VOTERS, TeamComparison, compare_teams
from querylift.index_tools.text_columns import WIDTH, align_columns, replace_unprintable

_LABELS: dict[Measure, str] = {
    "clicks_per_search": "clicks per search",
    "clicked_share": "searches with a click",
    "reciprocal_rank": "1 / rank of first click",
}


@dataclass(frozen=True, slots=True)
class ClickReport:
    """The comparison of one experiment. It has teams when two lists were interleaved, and groups otherwise."""

    log: SearchLog
    clicks: ClickFile
    joined: JoinedLog
    groups: GroupComparison | None
    teams: TeamComparison | None

    @property
    def sentence(self) -> str:
        """The conclusion: what the clicks did, and what to do."""
        if self.teams is not None:
            return _conclude_from_teams(self.teams)
        return _conclude_from_groups(self.groups) if self.groups is not None else ""

    def format_lines(self) -> Iterator[str]:
        """Yield the lines of the report, at most 80 columns wide."""
        first_search = self.log.searches[0]
        title = f"experiment {first_search.experiment}, traffic {first_search.traffic:g}"
        yield from _wrap(f"{title}: {len(self.joined.searches):,} searches, {self.joined.click_count:,} clicks")
        yield ""
        if self.teams is not None:
            yield from align_columns(_tabulate_votes(self.teams)).splitlines()
        elif self.groups is not None:
            yield from align_columns(_tabulate_groups(self.groups)).splitlines()
        yield ""
        for note in self.iterate_notes():
            yield from _wrap(note)
        yield from _wrap(self.sentence)

    def iterate_notes(self) -> Iterator[str]:
        """Yield a sentence for everything that was left out or guessed."""
        if self.joined.lost_count:
            yield f"{self.joined.lost_count:,} clicks belong to no search of this experiment and were left out."
        if self.joined.joined_by_query_count:
            minutes = JOIN_WINDOW_S // 60
            joined_count = f"{self.joined.joined_by_query_count:,} clicks have no query_id."
            yield f"{joined_count} They were joined by client and query, within {minutes} minutes."
        if self.joined.mixed_unit_count:
            yield f"{self.joined.mixed_unit_count:,} users changed groups and were left out."
        query_units = {search.search.unit for search in self.joined.searches if search.search.unit.startswith("query:")}
        if query_units:
            yield f"{len(query_units):,} of the users are queries, because their searches named no user."
        if self.clicks.counts_from_0:
            yield "Positions in the file of clicks begin at 0, so 1 was added to each."
        if self.teams is not None and self.teams.unassigned_clicks:
            yield f"{self.teams.unassigned_clicks:,} clicks were on no hit of their first page and count for no list."
        if self.groups is not None and self.teams is None:
            yield from _iterate_group_notes(self.groups, self.joined)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        first_search = self.log.searches[0]
        values: dict[str, Any] = {
            "experiment": first_search.experiment,
            "traffic": first_search.traffic,
            "searches": len(self.joined.searches),
            "clicks": self.joined.click_count,
            "lost_clicks": self.joined.lost_count,
            "clicks_joined_by_query": self.joined.joined_by_query_count,
            "users_in_both_groups": self.joined.mixed_unit_count,
            "searches_outside": self.log.outside_count,
        }
        if self.teams is not None:
            values |= _teams_to_json(self.teams)
        elif self.groups is not None:
            values |= _groups_to_json(self.groups)
        return values | {"notes": list(self.iterate_notes()), "sentence": self.sentence}


def build_report(log: SearchLog, clicks: ClickFile, joined: JoinedLog) -> ClickReport:
    """Compare teams where the log has interleaved answers, and groups otherwise."""
    interleaved_searches = [search for search in joined.searches if search.search.variant == "interleaved"]
    if interleaved_searches:
        return ClickReport(log, clicks, joined, None, compare_teams(interleaved_searches))
    return ClickReport(log, clicks, joined, compare_groups(joined.searches, log.searches[0].traffic), None)


def _conclude_from_groups(groups: GroupComparison) -> str:
    if groups.verdict == "too little":
        return f"Too little to conclude: {groups.shortage}. Go on, and read the log again later."
    if groups.verdict == "wrong sizes":
        sizes = f"{groups.expanded.users:,} of {groups.expanded.users + groups.control.users:,} users are in the expanded group"
        problem = f"{sizes}, where the share is {groups.traffic:g}. Chance does not make that (p = {groups.share_p_value:.1g})."
        return f"No conclusion: {problem} Look for lost log lines, for robots, or for a share that was changed."
    difference = groups.differences["clicks_per_search"]
    control_mean = groups.control.means["clicks_per_search"].mean
    change = f"{difference.value / control_mean:+.1%}" if control_mean else ""
    if groups.verdict == "rose":
        return f"Clicks per search rose ({change}). Switch expansion on for everybody: traffic = 1."
    if groups.verdict == "fell":
        return f"Clicks per search fell ({change}). Switch expansion off: enabled = false. Or try a lower weight."
    users = groups.control.users + groups.expanded.users
    detectable = f"{difference.detectable:.4f} clicks per search ({difference.detectable / control_mean:.1%})"
    return (
        f"No difference could be seen. With these {users:,} users, a difference of {detectable} "
        "would have been seen four times out of five. Go on if a smaller one matters to you."
    )


def _conclude_from_teams(teams: TeamComparison) -> str:
    voters = teams.users.expanded + teams.users.original
    if teams.verdict == "too little":
        return f"Too little to conclude: {voters:,} users preferred a list, and {MIN_VOTERS} are needed. Go on."
    share, low, high = teams.expanded_share
    numbers = f"Of {voters:,} users who preferred a list, {share:.1%} preferred the expanded one"
    details = f"{numbers} (95% interval {low:.1%} to {high:.1%}, p = {_format_p_value(teams.p_value)})."
    if teams.verdict == "expanded wins":
        return f"{details} The expanded list wins. Switch expansion on for everybody: interleave = false, traffic = 1."
    if teams.verdict == "original wins":
        return f"{details} The original list wins. Switch expansion off: enabled = false. Or try a lower weight."
    return f"{details} No difference could be seen. Go on if a small one matters to you."


def _format_p_value(p_value: float) -> str:
    return "less than 0.0001" if p_value < 0.0001 else f"{p_value:.2g}"


def _iterate_group_notes(groups: GroupComparison, joined: JoinedLog) -> Iterator[str]:
    clicks = [click for search in joined.searches for click in search.clicks]
    unknown_count = sum(not click.position for click in clicks)
    if unknown_count:
        yield f"{unknown_count:,} clicks have no position and count 0 in the last row."
    users, searches = groups.control.users + groups.expanded.users, groups.control.searches + groups.expanded.searches
    if searches > 500 and searches < 1.02 * users:
        yield "Nearly every user searched once. If the header names requests and not users, set traffic_by."


def _tabulate_groups(groups: GroupComparison) -> list[tuple[str, ...]]:
    control, expanded = groups.control, groups.expanded
    expanded_share = f"{expanded.expanded_searches / expanded.searches:.1%}" if expanded.searches else "-"
    rows = [
        ("", "control", "expanded", "difference", "95% interval"),
        ("users", f"{control.users:,}", f"{expanded.users:,}", "", ""),
        ("searches", f"{control.searches:,}", f"{expanded.searches:,}", "", ""),
        ("  really expanded", "-", expanded_share, "", ""),
        ("clicks", f"{control.clicks:,}", f"{expanded.clicks:,}", "", ""),
    ]
    return rows + [_tabulate_measure(measure, control, expanded, groups.differences) for measure in MEASURES]


def _tabulate_measure(
    measure: Measure, control: Group, expanded: Group, differences: dict[Measure, Difference]
) -> tuple[str, ...]:
    means = (f"{group.means[measure].mean:.4f}" if group.means else "-" for group in (control, expanded))
    if measure not in differences:
        return (_LABELS[measure], *means, "-", "-")
    difference = differences[measure]
    interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return (_LABELS[measure], *means, f"{difference.value:+.4f}", interval)


def _tabulate_votes(teams: TeamComparison) -> list[tuple[str, ...]]:
    columns = (teams.searches, teams.users)
    return [
        ("interleaved answers", "searches", "users"),
        ("more clicks on the expanded list", *(f"{votes.expanded:,}" for votes in columns)),
        ("more clicks on the original list", *(f"{votes.original:,}" for votes in columns)),
        ("no preference", *(f"{votes.ties:,}" for votes in columns)),
        ("all", *(f"{votes.total:,}" for votes in columns)),
    ]


def _groups_to_json(groups: GroupComparison) -> dict[str, Any]:
    return {
        "kind": "groups",
        "verdict": groups.verdict,
        "share_p_value": groups.share_p_value,
        "groups": {
            name: {
                "users": group.users,
                "clicking_users": group.clicking_users,
                "searches": group.searches,
                "expanded_searches": group.expanded_searches,
                "clicks": group.clicks,
                **{measure: group.means[measure].mean for measure in MEASURES if group.means},
            }
            for name, group in (("control", groups.control), ("expanded", groups.expanded))
        },
        "differences": {
            measure: {
                "difference": difference.value,
                "interval_95": [difference.low, difference.high],
                "detectable": difference.detectable,
            }
            for measure, difference in groups.differences.items()
        },
    }


def _teams_to_json(teams: TeamComparison) -> dict[str, Any]:
    share, low, high = teams.expanded_share
    return {
        "kind": "interleaved",
        "verdict": teams.verdict,
        "p_value": teams.p_value,
        "expanded_share": share,
        "interval_95": [low, high],
        "unassigned_clicks": teams.unassigned_clicks,
        "votes": {
            name: {"expanded": votes.expanded, "original": votes.original, "ties": votes.ties}
            for name, votes in (("searches", teams.searches), ("users", teams.users))
        },
    }


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(replace_unprintable(text), WIDTH, break_on_hyphens=False)
