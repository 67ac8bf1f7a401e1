"""Pairs of passages for training on preferences, chosen by reward.

The functions are pure: the same scored candidates, options and seed give the same pairs. A query without a pair is counted
under one reason: the first condition that no pair of its candidates meets.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

from querylift.plugin.errors import SettingsError
from querylift.plugin.words import count_words, find_sign_spans
from querylift.trainer.candidates import Candidate
from querylift.trainer.rewards.rewarded_text import make_rewarded_text
from querylift.trainer.rewards.scored_candidates import ScoredCandidate, check_comparable
from querylift.trainer.rewards.standard_rewards import standardize_rewards

VOTED_METHOD = "voted"
"""The method of a candidate that several other candidates of its query voted for."""
REWARD_TOLERANCE = 1e-9
"""Rewards that differ by less count as equal."""
NO_CANDIDATES = "no candidates in the pool"
ONE_CANDIDATE = "one candidate only"
EQUAL_REWARDS = "all candidates score alike"
SMALL_MARGIN = "margin too small"
BELOW_FLOOR = "nothing at the floor"
LENGTHS_DIFFER = "lengths too different"
REASONS = (NO_CANDIDATES, ONE_CANDIDATE, EQUAL_REWARDS, SMALL_MARGIN, BELOW_FLOOR, LENGTHS_DIFFER)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOptions:
    """Which pairs are made.

    `pools` names the methods whose candidates take part, none for all. The strategy "best-worst" gives one pair per query,
    "all" gives up to `cap`. `margin` is the least difference of the two rewards. With `floor`, the chosen passage is at
    least `min_gain` better than the original query. `max_length_ratio` bounds the words of the longer passage over those
    of the shorter. `order` says which pairs the cap keeps: "margin" prefers a large difference of the rewards, "words" that
    difference times the share of words that only one of the two passages has, and "random" prefers none. Before a candidate
    is paired again, the others are paired, unless the order is random. `seed` decides the random order and ties. With
    `standardize`, rewards are in standard deviations of their index, and so are `margin` and `min_gain`.
    """

    pools: tuple[str, ...] = ()
    strategy: Literal["best-worst", "all"] = "best-worst"
    margin: float = 0.05
    floor: bool = True
    min_gain: float = 0.0
    cap: int = 4
    max_length_ratio: float | None = None
    order: Literal["margin", "words", "random"] = "margin"
    seed: int = 0
    standardize: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in ("best-worst", "all"):
            raise SettingsError(f"the strategy is {self.strategy!r}; use 'best-worst' or 'all'")
        if self.order not in ("margin", "words", "random"):
            raise SettingsError(f"the order is {self.order!r}; use 'margin', 'words' or 'random'")
        if self.order == "words" and self.strategy != "all":
            raise SettingsError(f"the order 'words' does nothing with the strategy {self.strategy!r}; use 'all'")
        if not self.margin >= 0 or self.cap < 1:
            raise SettingsError(f"margin is {self.margin} and cap is {self.cap}; use a margin from 0 and a cap from 1")
        if self.min_gain and not self.floor:
            raise SettingsError(f"min_gain is {self.min_gain} without a floor; leave it out, or add the floor")
        if self.max_length_ratio is not None and not self.max_length_ratio >= 1:
            raise SettingsError(f"max_length_ratio is {self.max_length_ratio}; use 1 or more, or leave it out")


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two passages for one query. The reward of the chosen one is `margin` higher.

    A passage that did not end goes on after its text: it was cut, or its writer stopped at a limit.
    """

    query_id: str
    query: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float
    chosen_method: str
    rejected_method: str
    margin: float
    chosen_ended: bool = True
    rejected_ended: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return one line of a file of pairs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PairingResult:
    """The pairs, and the number of queries without a pair for every one of `REASONS`."""

    pairs: tuple[PreferencePair, ...]
    reasons: Mapping[str, int]

    @property
    def queries_with_pair(self) -> int:
        """The number of queries that gave a pair."""
        return len({(pair.query_id, pair.query) for pair in self.pairs})

    @property
    def queries(self) -> int:
        """The number of all queries, with a pair and without."""
        return self.queries_with_pair + sum(self.reasons.values())


def make_pairs(scored_candidates: Iterable[ScoredCandidate], options: PairOptions) -> PairingResult:
    """Return the pairs of every query, in the order in which the queries first appear.

    Raises SettingsError when the rewards were made in different ways.
    """
    scored_candidates = list(scored_candidates)
    check_comparable(scored_candidates)
    if options.standardize:
        scored_candidates = standardize_rewards(scored_candidates)
    pairs: list[PreferencePair] = []
    reasons = Counter(dict.fromkeys(REASONS, 0))
    for candidates in _group_by_query(scored_candidates):
        query_pairs, reason = _pair_candidates(candidates, options)
        pairs += query_pairs
        if reason:
            reasons[reason] += 1
    return PairingResult(tuple(pairs), dict(reasons))


def select_best(
    scored_candidates: Iterable[ScoredCandidate], *, per_query: int = 1, floor: float = 0.0
) -> tuple[ScoredCandidate, ...]:
    """Return the `per_query` best candidates of every query, best first. Rewards up to `floor` are left out."""
    if per_query < 1:
        raise ValueError(f"per_query is {per_query}; take at least 1")
    best: list[ScoredCandidate] = []
    for candidates in _group_by_query(scored_candidates):
        helpful = [scored for scored in _drop_duplicates(candidates) if scored.reward.value > floor]
        best += sorted(helpful, key=lambda scored: -scored.reward.value)[:per_query]
    return tuple(best)


def make_voted_candidate(
    candidates: Sequence[Candidate], *, words: int, min_count: int = 2, idf: Mapping[str, float] | None = None
) -> Candidate | None:
    """Return a candidate of the `words` words that most of `candidates` contain. All must be of one query.

    A word counts once per candidate, letter case aside, and must be in at least `min_count` of them. Words rank by count,
    times `idf` when that is given; words that `idf` lacks are in no document and are left out. The word that is used first
    wins a tie. Returns None when no word is left.
    """
    query_count = len({(candidate.query_id, candidate.query) for candidate in candidates})
    if query_count != 1:
        raise ValueError(f"the candidates are of {query_count} queries; give one candidate or more, all of one query")
    counts: Counter[str] = Counter()
    spellings: dict[str, str] = {}
    for candidate in candidates:
        expansion = make_rewarded_text(candidate).expansion
        for word in expansion.text.split() if expansion else ():
            counts[word.casefold()] += 1
            spellings.setdefault(word.casefold(), word)
    weights = {
        word: count * (1.0 if idf is None else idf.get(word, 0.0))
        for word, count in counts.items()
        if count >= min_count
    }
    ranked = sorted((word for word, weight in weights.items() if weight > 0), key=lambda word: -weights[word])[:words]
    if not ranked:
        return None
    query_id, query = candidates[0].query_id, candidates[0].query
    model = "+".join(sorted({candidate.model for candidate in candidates}))
    params = {"voters": len(candidates), "words": words, "min_count": min_count, "idf": idf is not None}
    return Candidate(query_id, query, VOTED_METHOD, model, " ".join(spellings[word] for word in ranked), params)


def _group_by_query(scored_candidates: Iterable[ScoredCandidate]) -> list[list[ScoredCandidate]]:
    groups: dict[tuple[str, str], list[ScoredCandidate]] = {}
    for scored in scored_candidates:
        groups.setdefault((scored.candidate.query_id, scored.candidate.query), []).append(scored)
    return list(groups.values())


def _drop_duplicates(candidates: Iterable[ScoredCandidate]) -> list[ScoredCandidate]:
    """Keep the first of candidates that are served alike, and drop those of which no word is served."""
    by_words: dict[str, ScoredCandidate] = {}
    for scored in candidates:
        if scored.words:
            by_words.setdefault(scored.words, scored)
    return list(by_words.values())


class _Choice(NamedTuple):
    """Two candidates of one query, of which the first has the higher reward."""

    chosen: ScoredCandidate
    rejected: ScoredCandidate

    @property
    def margin(self) -> float:
        return self.chosen.reward.value - self.rejected.reward.value

    @property
    def length_ratio(self) -> float:
        """The words of the longer passage over those of the shorter."""
        lengths = [max(1, count_words(scored.passage)) for scored in self]
        return max(lengths) / min(lengths)

    @property
    def word_difference(self) -> float:
        """The share of the two passages' words that only one of them has, from 0 to 1."""
        chosen, rejected = (
            frozenset(scored.words[start:end].lower() for start, end in find_sign_spans(scored.words))
            for scored in self
        )
        return len(chosen ^ rejected) / len(chosen | rejected)

    def to_pair(self) -> PreferencePair:
        return PreferencePair(
            query_id=self.chosen.candidate.query_id,
            query=self.chosen.candidate.query,
            chosen=self.chosen.passage,
            rejected=self.rejected.passage,
            chosen_reward=self.chosen.reward.value,
            rejected_reward=self.rejected.reward.value,
            chosen_method=self.chosen.candidate.method,
            rejected_method=self.rejected.candidate.method,
            margin=self.margin,
            chosen_ended=self.chosen.ended,
            rejected_ended=self.rejected.ended,
        )


def _pair_candidates(
    candidates: Sequence[ScoredCandidate], options: PairOptions
) -> tuple[list[PreferencePair], str | None]:
    """Return the pairs of one query, or no pair and the reason."""
    pool = _drop_duplicates(
        scored for scored in candidates if not options.pools or scored.candidate.method in options.pools
    )
    if len(pool) < 2:
        return [], ONE_CANDIDATE if pool else NO_CANDIDATES
    choices = [_choose_by_reward(left, right) for left, right in combinations(pool, 2)]
    for reason, is_met in _list_conditions(pool, options):
        choices = [choice for choice in choices if is_met(choice)]
        if not choices:
            return [], reason
    # The query is part of the seed, so that other queries of the file do not change its order.
    rng = random.Random(f"{options.seed}:{pool[0].candidate.query_id}:{pool[0].candidate.query}")
    rng.shuffle(choices)
    cap = options.cap if options.strategy == "all" else 1
    if options.order == "margin":
        choices = _spread_choices(sorted(choices, key=lambda choice: -choice.margin), cap)
    elif options.order == "words":
        choices = _spread_choices(sorted(choices, key=lambda choice: -choice.margin * choice.word_difference), cap)
    return [choice.to_pair() for choice in choices[:cap]], None


def _spread_choices(choices: Sequence[_Choice], count: int) -> list[_Choice]:
    """Return the first `count` choices, but one whose candidates were taken less often comes before the others."""
    waiting, chosen, uses = list(choices), list[_Choice](), Counter[str]()
    while waiting and len(chosen) < count:
        choice = min(
            waiting, key=lambda choice: sum(uses[scored.words] for scored in choice)
        )  # the first of equal ones
        waiting.remove(choice)
        chosen.append(choice)
        uses.update(scored.words for scored in choice)
    return chosen


def _choose_by_reward(left: ScoredCandidate, right: ScoredCandidate) -> _Choice:
    return _Choice(left, right) if left.reward.value >= right.reward.value else _Choice(right, left)


def _list_conditions(
    pool: Sequence[ScoredCandidate], options: PairOptions
) -> Iterator[tuple[str, Callable[[_Choice], bool]]]:
    """Yield the conditions of a pair, in order, each with the reason to give when no pair meets it."""
    rewards = [scored.reward.value for scored in pool]
    lowest, highest = min(rewards), max(rewards)
    yield EQUAL_REWARDS, lambda choice: choice.margin > REWARD_TOLERANCE
    yield SMALL_MARGIN, lambda choice: choice.margin >= options.margin - REWARD_TOLERANCE
    if options.floor:
        yield BELOW_FLOOR, lambda choice: choice.chosen.reward.value >= options.min_gain - REWARD_TOLERANCE
    if options.strategy == "best-worst":
        # This is never the reason: when any pair meets the conditions above, the best and the worst meet them too.
        yield (
            SMALL_MARGIN,
            lambda choice: choice.chosen.reward.value == highest and choice.rejected.reward.value == lowest,
        )
    if options.max_length_ratio is not None:
        ratio = options.max_length_ratio
        yield LENGTHS_DIFFER, lambda choice: choice.length_ratio <= ratio
