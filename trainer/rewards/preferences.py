"""Which of two passages is to be preferred, by reward. Pure: the same scored candidates, options and seed give the same pairs.

A query that gives no pair has one reason, the first condition that nothing of it meets; queries with and without sum to all.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

from querylift.plugin.errors import SettingsError
from querylift.trainer.candidates import Candidate
from querylift.trainer.rewards.scored_candidates import Scored, check_comparable
from querylift.trainer.rewards.scoring import served

VOTED = "voted"
"""The method of a candidate that several others of its query voted for."""
ALIKE = 1e-9
"""Rewards that differ by less are one reward."""
NO_CANDIDATES = "no candidates in the pool"
ONE_CANDIDATE = "one candidate only"
ALL_ALIKE = "all candidates score alike"
SMALL_MARGIN = "margin too small"
BELOW_FLOOR = "nothing at the floor"
LENGTHS = "lengths too different"
REASONS = (NO_CANDIDATES, ONE_CANDIDATE, ALL_ALIKE, SMALL_MARGIN, BELOW_FLOOR, LENGTHS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOptions:
    """Which pairs are made. `pools` are methods, none for all; "best-worst" gives one pair a query, "all" up to `cap`.

    `margin` is the least difference of rewards. With `floor` the chosen one is at least `min_gain` better than the query as it
    is. `max_length_ratio` bounds the longer passage's words over the shorter's. `order` says which pairs the cap keeps: those
    of the largest margin, or any, by `seed`, which settles ties too.
    """

    pools: tuple[str, ...] = ()
    strategy: Literal["best-worst", "all"] = "best-worst"
    margin: float = 0.05
    floor: bool = True
    min_gain: float = 0.0
    cap: int = 4
    max_length_ratio: float | None = None
    order: Literal["margin", "random"] = "margin"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in ("best-worst", "all"):
            raise SettingsError(f"the strategy is {self.strategy!r}; use 'best-worst' or 'all'")
        if self.order not in ("margin", "random"):
            raise SettingsError(f"the order is {self.order!r}; use 'margin' or 'random'")
        if not self.margin >= 0 or self.cap < 1:
            raise SettingsError(f"margin is {self.margin} and cap {self.cap}; use 0 or more, and 1 or more")
        if self.min_gain and not self.floor:
            raise SettingsError(
                f"min_gain is {self.min_gain} without a floor to raise; leave it out, or ask for the floor"
            )
        if self.max_length_ratio is not None and not self.max_length_ratio >= 1:
            raise SettingsError(f"max_length_ratio is {self.max_length_ratio}; use 1 or more, or leave it out")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two passages for one query, the first worth `margin` more."""

    query_id: str
    query: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float
    chosen_method: str
    rejected_method: str
    margin: float

    def to_json(self) -> dict[str, Any]:
        """One line of a file of pairs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Preferences:
    """The pairs, how many queries gave one, and why the others did not: a count for every one of `REASONS`."""

    pairs: tuple[Pair, ...]
    reasons: Mapping[str, int]

    @property
    def paired(self) -> int:
        """Queries that gave a pair."""
        return len({(pair.query_id, pair.query) for pair in self.pairs})

    @property
    def queries(self) -> int:
        """All queries, with a pair and without."""
        return self.paired + sum(self.reasons.values())


def pairs(scored: Iterable[Scored], options: PairOptions) -> Preferences:
    """The pairs of every query, queries in the order in which they first come.

    Raises SettingsError where rewards of different kinds are among them.
    """
    scored = list(scored)
    check_comparable(scored)
    made: list[Pair] = []
    reasons = Counter(dict.fromkeys(REASONS, 0))
    for candidates in _by_query(scored):
        of_query = _pairs(candidates, options)
        if isinstance(of_query, str):
            reasons[of_query] += 1
        else:
            made += of_query
    return Preferences(tuple(made), dict(reasons))


def best(scored: Iterable[Scored], *, per_query: int = 1, floor: float = 0.0) -> tuple[Scored, ...]:
    """The candidates that helped: of every query the `per_query` best with a reward above `floor`, best first."""
    if per_query < 1:
        raise ValueError(f"per_query is {per_query}; take at least 1")
    kept: list[Scored] = []
    for candidates in _by_query(scored):
        helped = [one for one in _distinct(candidates) if one.reward.reward > floor]
        kept += sorted(helped, key=lambda one: -one.reward.reward)[:per_query]
    return tuple(kept)


def voted(
    candidates: Sequence[Candidate], *, words: int, min_count: int = 2, idf: Mapping[str, float] | None = None
) -> Candidate | None:
    """The `words` words that most candidates of one query agree on, `min_count` of them at least, as one candidate.

    Words count once a candidate, letter case aside, and rank by count, times `idf` where it is given: a word that it does not
    hold is in no document, and left out. Ties go by first use. None where no word is left.
    """
    if len({(candidate.query_id, candidate.query) for candidate in candidates}) != 1:
        raise ValueError("the candidates that vote are of one query, and at least one")
    counts: Counter[str] = Counter()
    spelt: dict[str, str] = {}
    for expansion in map(served, candidates):
        for word in expansion.text.split() if expansion else ():
            counts[word.casefold()] += 1
            spelt.setdefault(word.casefold(), word)
    weights = {word: n * (1.0 if idf is None else idf.get(word, 0.0)) for word, n in counts.items() if n >= min_count}
    ranked = sorted((word for word, weight in weights.items() if weight > 0), key=lambda word: -weights[word])[:words]
    if not ranked:
        return None
    first = candidates[0]
    model = "+".join(sorted({candidate.model for candidate in candidates}))
    params = {"voters": len(candidates), "words": words, "min_count": min_count, "idf": idf is not None}
    return Candidate(first.query_id, first.query, VOTED, model, " ".join(spelt[word] for word in ranked), params)


def _by_query(scored: Iterable[Scored]) -> list[list[Scored]]:
    groups: dict[tuple[str, str], list[Scored]] = {}
    for one in scored:
        groups.setdefault((one.candidate.query_id, one.candidate.query), []).append(one)
    return list(groups.values())


def _distinct(candidates: Iterable[Scored]) -> list[Scored]:
    """Those of which a word is served, the first of each that are served alike."""
    kept: dict[str, Scored] = {}
    for one in candidates:
        if one.words:
            kept.setdefault(one.words, one)
    return list(kept.values())


_Two = tuple[Scored, Scored]


def _pairs(candidates: Sequence[Scored], options: PairOptions) -> list[Pair] | str:
    """The pairs of one query, or why there are none."""
    pool = _distinct(one for one in candidates if not options.pools or one.candidate.method in options.pools)
    if len(pool) < 2:
        return ONE_CANDIDATE if pool else NO_CANDIDATES
    left = [_ordered(*two) for two in combinations(pool, 2)]
    for reason, is_met in _conditions(pool, options):
        left = [two for two in left if is_met(two)]
        if not left:
            return reason
    draw = random.Random(f"{options.seed}:{pool[0].candidate.query_id}:{pool[0].candidate.query}")
    draw.shuffle(left)
    if options.order == "margin":
        left.sort(key=lambda two: -_margin(two))
    return [_pair(*two) for two in left[: options.cap if options.strategy == "all" else 1]]


def _conditions(pool: Sequence[Scored], options: PairOptions) -> Iterator[tuple[str, Callable[[_Two], bool]]]:
    """What a pair must meet, in order, and the reason where none does."""
    rewards = [one.reward.reward for one in pool]
    least, most = min(rewards), max(rewards)
    yield ALL_ALIKE, lambda two: _margin(two) > ALIKE
    yield SMALL_MARGIN, lambda two: _margin(two) >= options.margin - ALIKE
    if options.floor:
        yield BELOW_FLOOR, lambda two: two[0].reward.reward >= options.min_gain - ALIKE
    if options.strategy == "best-worst":
        # Never the reason itself: the best and the worst meet every condition so far where any two do.
        yield SMALL_MARGIN, lambda two: two[0].reward.reward == most and two[1].reward.reward == least
    if options.max_length_ratio is not None:
        ratio = options.max_length_ratio
        yield LENGTHS, lambda two: _length_ratio(two) <= ratio


def _ordered(one: Scored, other: Scored) -> _Two:
    return (one, other) if one.reward.reward >= other.reward.reward else (other, one)


def _margin(two: _Two) -> float:
    return two[0].reward.reward - two[1].reward.reward


def _length_ratio(two: _Two) -> float:
    lengths = [max(1, len(one.passage.split())) for one in two]
    return max(lengths) / min(lengths)


def _pair(chosen: Scored, rejected: Scored) -> Pair:
    return Pair(
        query_id=chosen.candidate.query_id,
        query=chosen.candidate.query,
        chosen=chosen.passage,
        rejected=rejected.passage,
        chosen_reward=chosen.reward.reward,
        rejected_reward=rejected.reward.reward,
        chosen_method=chosen.candidate.method,
        rejected_method=rejected.candidate.method,
        margin=_margin((chosen, rejected)),
    )
