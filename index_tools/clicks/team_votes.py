"""Count for which list of an interleaved answer the users clicked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from querylift.index_tools.clicks.click_events import Click
from querylift.index_tools.clicks.joining import ClickedSearch
from querylift.index_tools.clicks.search_log import LoggedSearch
from querylift.index_tools.clicks.statistics import calculate_sign_p_value, estimate_share

MIN_VOTERS = 20
"""With fewer users who preferred a list, the sign test can hardly show anything."""
SIGNIFICANCE_LEVEL = 0.05

VoteVerdict = Literal["too little", "expanded wins", "original wins", "no difference seen"]


@dataclass(frozen=True, slots=True)
class Votes:
    """How many voters clicked more hits of the expanded list, of the original list, and of neither more."""

    expanded: int
    original: int
    ties: int

    @property
    def total(self) -> int:
        """The number of voters."""
        return self.expanded + self.original + self.ties


@dataclass(frozen=True, slots=True)
class TeamComparison:
    """The votes of searches and of users. The test counts users, because the searches of one user depend on each other.

    `unassigned_clicks` clicks were on no hit of their answer.
    """

    searches: Votes
    users: Votes
    clicks: int
    unassigned_clicks: int

    @property
    def p_value(self) -> float:
        """How often chance alone makes the users' votes at least so one-sided."""
        return calculate_sign_p_value(self.users.expanded, self.users.original)

    @property
    def expanded_share(self) -> tuple[float, float, float]:
        """The share of voters who preferred the expanded list, and the ends of its interval. (0.5, 0, 1) without voters."""
        if not self.users.expanded + self.users.original:
            return 0.5, 0.0, 1.0
        return estimate_share(self.users.expanded, self.users.original)

    @property
    def verdict(self) -> VoteVerdict:
        """Which list won, or why nobody can tell."""
        if self.users.expanded + self.users.original < MIN_VOTERS:
            return "too little"
        if self.p_value >= SIGNIFICANCE_LEVEL:
            return "no difference seen"
        return "expanded wins" if self.users.expanded > self.users.original else "original wins"


def compare_teams(searches: Sequence[ClickedSearch]) -> TeamComparison:
    """Count the votes of all interleaved searches. A user votes for the list that won more of his or her searches."""
    search_votes: list[int] = []
    user_votes: defaultdict[str, int] = defaultdict(int)
    click_count = unassigned_count = 0
    for search in searches:
        teams = Counter(_find_team(search.search, click) for click in search.clicks)
        click_count += len(search.clicks)
        unassigned_count += teams[""]
        vote = _get_sign(teams["e"] - teams["o"])
        search_votes.append(vote)
        user_votes[search.search.unit] += vote
    users = [_get_sign(balance) for balance in user_votes.values()]
    return TeamComparison(_count_votes(search_votes), _count_votes(users), click_count, unassigned_count)


def _find_team(search: LoggedSearch, click: Click) -> str:
    """Return the team of the clicked hit, by its id or else by its position, and "" when it is unknown."""
    if click.object_id in search.hit_ids:
        return search.teams[search.hit_ids.index(click.object_id)]
    if click.position is not None and 1 <= click.position <= len(search.teams):
        return search.teams[click.position - 1]
    return ""


def _get_sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _count_votes(votes: Sequence[int]) -> Votes:
    return Votes(votes.count(1), votes.count(-1), votes.count(0))
