"""Scoring of candidates: how much better a query ranks on a real engine with the expansion that would be served.

A reward is a weighted mix of differences, averaged over expansion weights. Each difference is a measure of the rewritten
query less that of the original query. The measures are trec_eval's, over the first `DEPTH` hits. They follow the rules of
`querylift.index_tools.evaluation.measures`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from querylift.index_tools.engine import Engine
from querylift.index_tools.evaluation.measures import (
    CONDENSED_MEASURES,
    MAIN_MEASURE,
    REWARD_MEASURES,
    SUMMARY_MEASURES,
)
from querylift.index_tools.judging.pooling import DEFAULT_POOL_DEPTH, Pool
from querylift.index_tools.searching import BodyFormatter, format_search_body
from querylift.plugin.broker import Answer
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.files import compute_json_digest
from querylift.plugin.flow import ExpansionRules, FlowResult, Search, run_flow, search_flow
from querylift.plugin.outcome import Outcome
from querylift.plugin.settings import Settings, enable_index
from querylift.plugin.settings_tables.index import IndexSettings
from querylift.trainer.candidates import Candidate
from querylift.trainer.rewards.engine_retry import EngineRetry
from querylift.trainer.rewards.labels import Labels
from querylift.trainer.rewards.ranker import Ranker, split_into_batches
from querylift.trainer.rewards.ranking_cache import RankingCache
from querylift.trainer.rewards.ranking_measures import Measurer, compute_reward
from querylift.trainer.rewards.rewarded_text import RewardedText, TextCutter, make_rewarded_text
from querylift.trainer.rewards.scored_candidates import Reward, RewardBasis, ScoredCandidate

DEPTH = 100
"""Hits that a search asks for."""
_SETTINGS_WITHOUT_EFFECT = {
    "weight",
    "enabled",
    "generator",
    "budget_ms",
    "cache_ttl_s",
    "traffic",
    "traffic_by",
    "interleave",
    "experiment",
}
"""Keys of an index's table that change no reward: the rewards' own weights hold, and every candidate is rewritten."""
_BLOCK_SIZE = 1024
_DIGEST_CHARACTERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOptions:
    """How candidates are scored.

    `weights` are the weights of the expansion. `mix` gives each measure its share of the reward. `cut` shortens a
    teacher's text to what the student may write, so that no other text is rewarded than is learned.
    """

    index: str
    weights: tuple[float, ...] = (0.2,)
    mix: Mapping[str, float] = field(default_factory=lambda: {MAIN_MEASURE: 1.0})
    cut: TextCutter = str
    format_body: BodyFormatter = format_search_body

    def __post_init__(self) -> None:
        if not self.weights or not all(0 < weight <= 10 for weight in self.weights):
            raise SettingsError(f"weights are {self.weights}; give one or more, above 0 and at most 10")
        if len(set(self.weights)) < len(self.weights):
            raise SettingsError(f"weights are {self.weights}; give each of them once")
        known = (*REWARD_MEASURES, *CONDENSED_MEASURES)
        unknown = sorted(self.mix.keys() - set(known))
        if unknown:
            raise SettingsError(f"{unknown[0]!r} is not a measure; mix any of {', '.join(known)}")
        if not self.mix or not all(math.isfinite(share) for share in self.mix.values()) or not any(self.mix.values()):
            raise SettingsError(f"the mix is {dict(self.mix)}; give at least one measure a share other than 0")

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures of every candidate: nDCG@10, recall@100, and the other measures of the mix."""
        return tuple(dict.fromkeys((*SUMMARY_MEASURES, *self.mix)))


@dataclass(frozen=True, slots=True)
class ScoringResult:
    """The scored candidates, and the counts of the others.

    `unlabelled` counts candidates whose query has no relevant document. `rejections` holds, by candidate key, the reason
    why the engine rejected a search. `not_expanded` counts the reasons why a query was sent without its candidate, which
    then scores 0. `fingerprint` is that of the index at the start. `index_changed` says that it differs at the end.
    `cut_count` counts the scored candidates whose text was cut to what the student may write.
    """

    scored: tuple[ScoredCandidate, ...]
    unlabelled: int
    rejections: Mapping[str, str]
    not_expanded: Mapping[str, int]
    search_count: int
    cache_hits: int
    fingerprint: str
    index_changed: bool
    cut_count: int = 0


def score_candidates(
    candidates: Iterable[Candidate],
    *,
    engine: Engine,
    settings: Settings,
    labels: Labels,
    options: RewardOptions,
    cache: RankingCache | None = None,
    retry: EngineRetry | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> ScoringResult:
    """Score candidates on the engine, in order. Candidates of queries without a relevant document are left out.

    The index's table in `settings` decides how it is searched; the weights come from `options`. `progress` is called with
    the number of candidates so far. Raises EngineError when the engine stays away longer than `retry` allows.
    """
    with ExitStack() as stack:
        cache = stack.enter_context(RankingCache()) if cache is None else cache
        ranker = Ranker(engine, options.index, cache=cache, retry=retry or EngineRetry())
        scorer = _BlockScorer(ranker, settings, labels, options)
        scored: list[ScoredCandidate] = []
        candidate_count = 0
        for block in split_into_batches(candidates, _BLOCK_SIZE):
            scored += scorer.score_block(block)
            candidate_count += len(block)
            progress(candidate_count)
        return ScoringResult(
            scored=tuple(scored),
            unlabelled=scorer.unlabelled,
            rejections=scorer.rejections,
            not_expanded=scorer.not_expanded,
            search_count=ranker.search_count,
            cache_hits=ranker.cache_hits,
            fingerprint=ranker.fingerprint,
            index_changed=ranker.has_index_changed(),
            cut_count=scorer.cut_count,
        )


@dataclass(frozen=True, slots=True)
class CandidatePool:
    """The first documents of the searches that score candidates, for a judge to grade.

    `fingerprint` is that of the index. `search_count` and `cache_hits` count the searches that were made, and those that
    were in the cache.
    """

    pool: Pool
    fingerprint: str
    search_count: int
    cache_hits: int


def pool_candidates(
    candidates: Iterable[Candidate],
    *,
    engine: Engine,
    settings: Settings,
    options: RewardOptions,
    cache: RankingCache,
    retry: EngineRetry,
    depth: int = DEFAULT_POOL_DEPTH,
    progress: Callable[[int], None] = lambda count: None,
) -> CandidatePool:
    """Return the first `depth` documents of every query's own search and of all its candidates' rewrites.

    `cache` gets the rankings, so that `score_candidates` searches nothing again. `progress` is called with the number of
    candidates so far. Raises EngineError as `score_candidates` does.
    """
    ranker = Ranker(engine, options.index, cache=cache, retry=retry)
    search_maker = _SearchMaker(settings, options)
    doc_ids: dict[str, dict[str, None]] = {}
    candidate_count = 0
    for block in split_into_batches(candidates, _BLOCK_SIZE):
        prepared = [search_maker.make_searches(candidate) for candidate in block]
        rankings = ranker.find_rankings(body for searches in prepared for body in searches.bodies)
        for searches in prepared:
            first_ids = (doc_id for body in searches.bodies for doc_id in rankings.get(body, ())[:depth])
            doc_ids.setdefault(searches.candidate.query_id, {}).update(dict.fromkeys(first_ids))
        candidate_count += len(block)
        progress(candidate_count)
    pool = Pool({query_id: tuple(ids) for query_id, ids in doc_ids.items() if ids}, {})
    return CandidatePool(pool, ranker.fingerprint, ranker.search_count, ranker.cache_hits)


@dataclass(frozen=True, slots=True)
class _CandidateSearches:
    """A candidate with the text that is rewarded and its search bodies.

    The first body is the original query. The others are its rewrites, one for each weight.
    """

    candidate: Candidate
    text: RewardedText
    bodies: Sequence[bytes]


class _SearchMaker:
    """Makes the search bodies of candidates, and counts why some are sent without their expansion."""

    def __init__(self, settings: Settings, options: RewardOptions) -> None:
        self._options = options
        self._rules = {
            weight: ExpansionRules(enable_index(settings, options.index, weight=weight), clock=time.monotonic)
            for weight in options.weights
        }
        self.not_expanded: Counter[str] = Counter()

    def make_searches(self, candidate: Candidate) -> _CandidateSearches:
        """Return the candidate with the text that is rewarded and its search bodies."""
        text = make_rewarded_text(candidate, cut=self._options.cut)
        return _CandidateSearches(candidate, text, self._make_bodies(candidate, text.expansion))

    def _make_bodies(self, candidate: Candidate, expansion: Expansion | None) -> list[bytes]:
        """Return the original search and its rewrites. A rewrite that does not apply is the original search."""
        original = self._options.format_body(candidate.query, DEPTH)
        results = [_rewrite(original, self._options.index, rules, expansion) for rules in self._rules.values()]
        if results[0].body is None:
            self.not_expanded[results[0].outcome.format_header()] += 1
        return [original, *(original if result.body is None else result.body for result in results)]


class _BlockScorer:
    """Scores blocks of candidates, and counts those that it cannot score."""

    def __init__(self, ranker: Ranker, settings: Settings, labels: Labels, options: RewardOptions) -> None:
        self._ranker = ranker
        self._options = options
        self._labels = labels
        self._qrels = labels.select_usable_qrels()
        self._measure = Measurer(self._qrels, options.measures, relevant_from=labels.relevant_from)
        self._search_maker = _SearchMaker(settings, options)
        self._basis = _make_basis(ranker, settings, labels, options)
        self.unlabelled = self.cut_count = 0
        self.rejections: dict[str, str] = {}

    @property
    def not_expanded(self) -> Mapping[str, int]:
        """How often each reason kept an expansion out of a search."""
        return dict(self._search_maker.not_expanded)

    def score_block(self, block: Sequence[Candidate]) -> Iterator[ScoredCandidate]:
        """Yield the block's candidates with their rewards, less those that cannot be scored."""
        labelled = [candidate for candidate in block if candidate.query_id in self._qrels]
        self.unlabelled += len(block) - len(labelled)
        prepared: list[_CandidateSearches] = []
        rankings = self._ranker.find_rankings(self._prepare_bodies(labelled, prepared))
        measured = self._measure_rankings(prepared, rankings)
        for searches in prepared:
            candidate = searches.candidate
            rejections = [self._ranker.rejections[body] for body in searches.bodies if body in self._ranker.rejections]
            if rejections:
                self.rejections[candidate.request_key] = rejections[0]
            else:
                yield self._make_scored(searches, [measured[candidate.query_id, body] for body in searches.bodies])

    def _prepare_bodies(self, candidates: Iterable[Candidate], prepared: list[_CandidateSearches]) -> Iterator[bytes]:
        """Yield the search bodies of all candidates, and add each candidate with its bodies to `prepared`."""
        for candidate in candidates:
            prepared.append(self._search_maker.make_searches(candidate))
            yield from prepared[-1].bodies

    def _measure_rankings(
        self, prepared: Iterable[_CandidateSearches], rankings: Mapping[bytes, list[str]]
    ) -> dict[tuple[str, bytes], dict[str, float]]:
        """Return the measures of every ranking, by query id and search body."""
        by_query = {
            (searches.candidate.query_id, body): rankings[body]
            for searches in prepared
            for body in searches.bodies
            if body in rankings
        }
        measured = self._measure([(query_id, ranking) for (query_id, _), ranking in by_query.items()])
        return dict(zip(by_query, measured, strict=True))

    def _make_scored(self, searches: _CandidateSearches, measured: Sequence[Mapping[str, float]]) -> ScoredCandidate:
        """Return the candidate with its reward. `measured` is in the order of its search bodies."""
        base, *values = measured
        by_weight = dict(zip(self._options.weights, values, strict=True))
        value = compute_reward(base, values, self._options.mix)
        reward = Reward(searches.candidate.query_id, value, base, by_weight)
        _, passage, ended, was_cut = searches.text
        words = searches.text.expansion.text if searches.text.expansion else ""
        self.cut_count += was_cut
        return ScoredCandidate(searches.candidate, passage, words, reward, self._labels.source, self._basis, ended)


def _rewrite(body: bytes, index: str, rules: ExpansionRules, expansion: Expansion | None) -> FlowResult:
    """Return the result of the search `body` as the proxy would send it with `expansion`."""
    outcome = Outcome("expanded") if expansion is not None else Outcome("skipped", "nothing")
    return run_flow(search_flow(Search(index, body), rules), lambda question: Answer(expansion, outcome))


def _make_basis(ranker: Ranker, settings: Settings, labels: Labels, options: RewardOptions) -> RewardBasis:
    index_settings = settings.find_index_settings(options.index) or IndexSettings()
    rules = index_settings.model_dump(mode="json", exclude=_SETTINGS_WITHOUT_EFFECT)
    return RewardBasis(
        weights=tuple(sorted(options.weights)),
        mix={measure: share for measure, share in sorted(options.mix.items()) if share},
        index=options.index,
        index_state=ranker.fingerprint[:_DIGEST_CHARACTERS],
        labels_digest=labels.compute_digest()[:_DIGEST_CHARACTERS],
        rules=compute_json_digest(rules)[:_DIGEST_CHARACTERS],
    )
