"""Compare the clicks of the expanded group with those of the control group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from querylift.index_tools.clicks.joining import ClickedSearch
from querylift.index_tools.clicks.statistics import (
    Difference,
    RatioMean,
    calculate_share_p_value,
    compare_means,
    estimate_ratio,
)

Measure = Literal["clicks_per_search", "clicked_share", "reciprocal_rank"]
MEASURES: tuple[Measure, ...] = ("clicks_per_search", "clicked_share", "reciprocal_rank")
"""The first one decides."""
MIN_USERS = 100
MIN_CLICKING_USERS = 20
"""With fewer users in a group, or fewer who clicked, the interval would not be what it says."""
SUSPICIOUS_P_VALUE = 0.001
"""A p-value below this means that users were lost or counted twice. Then the comparison means nothing."""

Verdict = Literal["too little", "wrong sizes", "rose", "fell", "no difference seen"]


@dataclass(slots=True)
class _User:
    """What one user did: searches, and the sum of each measure over them."""

    searches: int = 0
    sums: dict[Measure, float] = field(default_factory=lambda: dict.fromkeys(MEASURES, 0.0))


@dataclass(frozen=True, slots=True)
class Group:
    """One group. `expanded_searches` searches were really expanded. `means` is empty below two users."""

    users: int
    clicking_users: int
    searches: int
    clicks: int
    expanded_searches: int
    means: dict[Measure, RatioMean]


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """Both groups, and the differences. `share_p_value` says whether the groups' sizes fit the share of traffic."""

    control: Group
    expanded: Group
    traffic: float
    share_p_value: float | None
    differences: dict[Measure, Difference]

    @property
    def verdict(self) -> Verdict:
        """What clicks per search did, or why nobody can tell."""
        if self.shortage:
            return "too little"
        if self.share_p_value is not None and self.share_p_value < SUSPICIOUS_P_VALUE:
            return "wrong sizes"
        difference = self.differences[MEASURES[0]]
        if difference.low > 0:
            return "rose"
        return "fell" if difference.high < 0 else "no difference seen"

    @property
    def shortage(self) -> str:
        """Return what there is too little of, or ""."""
        for name, group in (("control", self.control), ("expanded", self.expanded)):
            if group.users < MIN_USERS:
                return f"the {name} group has {group.users:,} users, and {MIN_USERS} are needed"
            if group.clicking_users < MIN_CLICKING_USERS:
                return (
                    f"{group.clicking_users:,} users of the {name} group clicked, and {MIN_CLICKING_USERS} are needed"
                )
        return ""


def compare_groups(searches: Sequence[ClickedSearch], traffic: float) -> GroupComparison:
    """Compare the searches of both groups. A search without a click counts 0 in every measure."""
    control, expanded = (
        _summarize_group([search for search in searches if (search.search.variant == "control") == is_control])
        for is_control in (True, False)
    )
    share_p_value = None
    if traffic < 1 and control.users + expanded.users:
        share_p_value = calculate_share_p_value(expanded.users, control.users, traffic)
    differences = {
        measure: compare_means(control.means[measure], expanded.means[measure])
        for measure in MEASURES
        if control.means and expanded.means
    }
    return GroupComparison(control, expanded, traffic, share_p_value, differences)


def _summarize_group(searches: Sequence[ClickedSearch]) -> Group:
    users = _sum_by_user(searches)
    means = {}
    if len(users) > 1:
        counts = [user.searches for user in users]
        means = {measure: estimate_ratio([user.sums[measure] for user in users], counts) for measure in MEASURES}
    return Group(
        users=len(users),
        clicking_users=sum(user.sums["clicks_per_search"] > 0 for user in users),
        searches=len(searches),
        clicks=sum(len(search.clicks) for search in searches),
        expanded_searches=sum(search.search.is_expanded for search in searches),
        means=means,
    )


def _sum_by_user(searches: Iterable[ClickedSearch]) -> list[_User]:
    users: dict[str, _User] = {}
    for search in searches:
        user = users.setdefault(search.search.unit, _User())
        user.searches += 1
        user.sums["clicks_per_search"] += len(search.clicks)
        user.sums["clicked_share"] += bool(search.clicks)
        positions = [click.position for click in search.clicks if click.position]
        user.sums["reciprocal_rank"] += 1 / min(positions) if positions else 0
    return list(users.values())
