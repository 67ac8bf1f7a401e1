"""Team-draft interleaving: two ranked lists become one, and each hit remembers the list that it came from.

Radlinski, Kurup and Joachims, How does clickthrough data reflect retrieval quality?, CIKM 2008. Nothing here reads or
writes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from querylift.plugin.dsl import UrlParameters

Team = Literal["o", "e", "="]
"""The list that a hit came from: the original search's, the expanded search's, or the beginning that both share."""
MAX_SIZE = 100
"""A longer page is not interleaved: each hit is read and written again."""
_DEFAULT_SIZE = 10
_BODY_KEYS = frozenset(
    "query from size _source fields stored_fields docvalue_fields script_fields runtime_mappings highlight post_filter "
    "aggs aggregations track_total_hits track_scores timeout version seq_no_primary_term indices_boost ext".split()
)
"""Keys of a search body that leave a list of hits which can be merged. A body with any other key is not interleaved."""

Hit = TypeVar("Hit", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Draft:
    """A merged list. `picks` has a team and a position in that team's list for each hit. For "=" both lists have it."""

    picks: tuple[tuple[Team, int], ...]

    @property
    def teams(self) -> str:
        """One letter for each hit, such as `==oeeo`."""
        return "".join(team for team, _ in self.picks)


def draft_teams(original: Sequence[Hit], expanded: Sequence[Hit], *, seed: str) -> Draft:
    """Merge two lists of different hits each, into one as long as the longer list. The same seed gives the same draft.

    The hits on which both lists agree from the top on belong to no team, because a click on them prefers neither list.
    After them, the team with fewer hits picks its best hit that is left. A coin decides between equal teams.
    """
    coin = random.Random(hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest())
    size = max(len(original), len(expanded))
    shared_count = _count_shared_hits(original, expanded)
    picks: list[tuple[Team, int]] = [("=", i) for i in range(shared_count)]
    picked_hits = set(original[:shared_count])
    lists: dict[Team, Sequence[Hit]] = {"o": original, "e": expanded}
    positions: dict[Team, int] = {"o": shared_count, "e": shared_count}
    counts: dict[Team, int] = {"o": 0, "e": 0}
    while len(picks) < size:
        for team, hits in lists.items():
            while positions[team] < len(hits) and hits[positions[team]] in picked_hits:
                positions[team] += 1
        teams: list[Team] = [team for team in lists if positions[team] < len(lists[team])]
        if not teams:
            break
        if len(teams) == 2 and counts["o"] != counts["e"]:
            teams = [min(teams, key=lambda team: counts[team])]
        team = coin.choice(teams)
        picks.append((team, positions[team]))
        picked_hits.add(lists[team][positions[team]])
        counts[team] += 1
    return Draft(tuple(picks))


def can_interleave(body: Mapping[str, Any], url_parameters: UrlParameters) -> bool:
    """Whether a search asks for a first page of 2 to MAX_SIZE hits, sorted by score alone, and for no more than that."""
    start = url_parameters.from_ if url_parameters.from_ is not None else body.get("from", 0)
    size = url_parameters.size if url_parameters.size is not None else body.get("size", _DEFAULT_SIZE)
    if str(start) != "0" or not str(size).isdecimal() or not 2 <= int(size) <= MAX_SIZE:
        return False
    return _BODY_KEYS.issuperset(body)


def _count_shared_hits(original: Sequence[Hit], expanded: Sequence[Hit]) -> int:
    for i, (a, b) in enumerate(zip(original, expanded, strict=False)):
        if a != b:
            return i
    return min(len(original), len(expanded))
