"""What a candidate is worth: how much better its query ranks on a real engine, through the rewrite that is served.

A reward is the mean over weights of a weighted mix of differences: a measure of the rewritten query less that of the query as
it is. Measures are trec_eval's, by the rules of `querylift.index_tools.evaluation.measures`, over the first `DEPTH` hits.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from querylift.index_tools.engine import Engine
from querylift.index_tools.searching import Form, search_body
from querylift.plugin.broker import Answer
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import Expansion, clean_prose, from_words, parse
from querylift.plugin.flow import Result, Rules, Search, run, search_flow
from querylift.plugin.outcome import Outcome
from querylift.plugin.settings import IndexSettings, Settings, switched_on
from querylift.trainer.candidates import Candidate
from querylift.trainer.rewards.labels import Labels, labels_from, labels_of, sha256_of
from querylift.trainer.rewards.ranker import Ranker, batched
from querylift.trainer.rewards.ranking_cache import RankingCache
from querylift.trainer.rewards.ranking_measures import MEASURES, Measurer, mixed
from querylift.trainer.rewards.retry import Patience
from querylift.trainer.rewards.scored_candidates import Basis, Reward, Scored, read_scored, write_scored

__all__ = [
    "DEPTH",
    "MEASURES",
    "STUDENT",
    "Basis",
    "Labels",
    "Measurer",
    "Reward",
    "RewardOptions",
    "Scored",
    "Scoring",
    "labels_from",
    "labels_of",
    "mixed",
    "passage",
    "read_scored",
    "score",
    "served",
    "write_scored",
]

DEPTH = 100
"""Hits that a search asks for."""
STUDENT = "student"
"""Methods that begin so are the student's own samples: raw output, read as the served model's is."""
TERMS = "expansion"
_ALWAYS = ("ndcg_at_10", "recall_at_100")
_BLOCK = 1024
_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOptions:
    """How candidates are scored. `mix` gives each measure its share of the reward; `weights` are the expansion's.

    `max_words` cuts a teacher's passage to what the student can write (48 words are about its 64 tokens); None does not.
    """

    index: str
    weights: tuple[float, ...] = (0.2,)
    mix: Mapping[str, float] = field(default_factory=lambda: {"ndcg_at_10": 1.0})
    max_words: int | None = None
    form: Form = search_body

    def __post_init__(self) -> None:
        if not self.weights or not all(0 < weight <= 10 for weight in self.weights):
            raise SettingsError(f"weights are {self.weights}; give one or more, above 0 and at most 10")
        if len(set(self.weights)) < len(self.weights):
            raise SettingsError(f"weights are {self.weights}; give each of them once")
        unknown = sorted(self.mix.keys() - MEASURES.keys())
        if unknown:
            raise SettingsError(f"{unknown[0]!r} is no measure; mix any of {', '.join(MEASURES)}")
        if not self.mix or not all(math.isfinite(share) for share in self.mix.values()) or not any(self.mix.values()):
            raise SettingsError(f"the mix is {dict(self.mix)}; give at least one measure a share other than 0")
        if self.max_words is not None and self.max_words < 1:
            raise SettingsError(f"max_words is {self.max_words}; give 1 or more, or leave it out")

    @property
    def measures(self) -> tuple[str, ...]:
        """Those taken of every candidate: nDCG@10, recall@100, and what the mix has besides."""
        return tuple(dict.fromkeys((*_ALWAYS, *self.mix)))


@dataclass(frozen=True, slots=True)
class Scoring:
    """What became of all candidates. `as_it_is` counts why a query was sent without its candidate, which then scores 0.

    `refused` names the candidates whose search the engine would not take, by key and reason. `fingerprint` is the index's as it
    stood at the start, `changed` whether it is another one at the end.
    """

    scored: tuple[Scored, ...]
    unlabelled: int
    refused: Mapping[str, str]
    as_it_is: Mapping[str, int]
    searched: int
    from_cache: int
    fingerprint: str
    changed: bool


def served(candidate: Candidate, *, max_words: int | None = None) -> Expansion | None:
    """What the proxy would expand the query with: a student's output as the served model's, else a table's row.

    A fast expander's candidate holds its weighted terms as `params["expansion"]`.
    """
    if TERMS in candidate.params:
        return Expansion.from_json(candidate.params[TERMS])
    if candidate.method.startswith(STUDENT):
        return parse(candidate.text, query=candidate.query)
    return from_words(_clipped(clean_prose(candidate.text), max_words))


def passage(candidate: Candidate, *, max_words: int | None = None) -> str:
    """What the student has to write to be served as this candidate is, one line; "" where no word is left.

    The cleaned and clipped text, or only its words where the contract would read that text otherwise.
    """
    return _passage(candidate, served(candidate, max_words=max_words), max_words)


def _passage(candidate: Candidate, expansion: Expansion | None, max_words: int | None) -> str:
    if expansion is None:
        return ""
    student = candidate.method.startswith(STUDENT)
    text = _clipped(clean_prose(candidate.text), None if student else max_words)
    if student and text == candidate.text:
        return text
    return text if parse(text, query=candidate.query) == expansion else expansion.text


def _clipped(text: str, max_words: int | None) -> str:
    return text if max_words is None else " ".join(text.split()[:max_words])


def score(
    candidates: Iterable[Candidate],
    *,
    engine: Engine,
    settings: Settings,
    labels: Labels,
    options: RewardOptions,
    cache: RankingCache | None = None,
    patience: Patience | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Scoring:
    """Score candidates on the engine, in their order; those of queries without a relevant document are left out.

    What is allowed on the index comes from its table in `settings`, the weight from `options`. `progress` is called with
    the count of candidates so far. Raises EngineError where the engine stays away longer than `patience`.
    """
    with ExitStack() as stack:
        kept = stack.enter_context(RankingCache()) if cache is None else cache
        ranker = Ranker(engine, options.index, cache=kept, patience=patience or Patience())
        scorer = _Scorer(ranker, settings, labels, options)
        found: list[Scored] = []
        done = 0
        for block in batched(candidates, _BLOCK):
            found += scorer.score(block)
            done += len(block)
            progress(done)
        return Scoring(
            scored=tuple(found),
            unlabelled=scorer.unlabelled,
            refused=scorer.refused,
            as_it_is=dict(scorer.as_it_is),
            searched=ranker.searched,
            from_cache=ranker.from_cache,
            fingerprint=ranker.fingerprint,
            changed=ranker.changed(),
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A candidate, what is served of it, and its searches: of the query as it is, then by each weight."""

    candidate: Candidate
    expansion: Expansion | None
    passage: str
    bodies: Sequence[bytes]


class _Scorer:
    """Scores blocks of candidates and counts what it could not score."""

    def __init__(self, ranker: Ranker, settings: Settings, labels: Labels, options: RewardOptions) -> None:
        self._ranker = ranker
        self._options = options
        self._labels = labels
        self._usable = labels.usable()
        self._measure = Measurer(self._usable, options.measures, relevant_from=labels.relevant_from)
        self._rules = {weight: _rules(settings, options.index, weight) for weight in options.weights}
        self._basis = _basis(ranker, settings, labels, options)
        self.unlabelled = 0
        self.refused: dict[str, str] = {}
        self.as_it_is: Counter[str] = Counter()

    def score(self, block: Sequence[Candidate]) -> Iterator[Scored]:
        """The block's candidates, less those that cannot be scored."""
        labelled = [candidate for candidate in block if candidate.query_id in self._usable]
        self.unlabelled += len(block) - len(labelled)
        asked: list[_Asked] = []
        found = self._ranker.rank(self._searches(labelled, asked))
        rankings = {
            (one.candidate.query_id, body): found[body] for one in asked for body in one.bodies if body in found
        }
        measured = dict(
            zip(rankings, self._measure([(query_id, found[body]) for query_id, body in rankings]), strict=True)
        )
        for one in asked:
            reasons = [self._ranker.refused[body] for body in one.bodies if body in self._ranker.refused]
            if reasons:
                self.refused[one.candidate.key] = reasons[0]
            else:
                yield self._scored(one, [measured[one.candidate.query_id, body] for body in one.bodies])

    def _scored(self, one: _Asked, measured: Sequence[Mapping[str, float]]) -> Scored:
        base, *values = measured
        by_weight = dict(zip(self._options.weights, values, strict=True))
        reward = Reward(one.candidate.query_id, mixed(base, values, self._options.mix), base, by_weight)
        words = one.expansion.text if one.expansion else ""
        return Scored(one.candidate, one.passage, words, reward, self._labels.source, self._basis)

    def _searches(self, candidates: Iterable[Candidate], asked: list[_Asked]) -> Iterator[bytes]:
        """The searches of each candidate, which goes into `asked`."""
        for candidate in candidates:
            expansion, bodies = self._bodies(candidate)
            asked.append(_Asked(candidate, expansion, _passage(candidate, expansion, self._options.max_words), bodies))
            yield from bodies

    def _bodies(self, candidate: Candidate) -> tuple[Expansion | None, list[bytes]]:
        """What is served, and the searches to make."""
        expansion = served(candidate, max_words=self._options.max_words)
        plain = self._options.form(candidate.query, DEPTH)
        results = [_rewrite(plain, self._options.index, rules, expansion) for rules in self._rules.values()]
        if results[0].body is None:
            self.as_it_is[results[0].outcome.header()] += 1
        return expansion, [plain, *(plain if result.body is None else result.body for result in results)]


def _rewrite(plain: bytes, index: str, rules: Rules, expansion: Expansion | None) -> Result:
    outcome = Outcome("expanded") if expansion is not None else Outcome("skipped", "nothing")
    return run(search_flow(Search(index, plain), rules), lambda question: Answer(expansion, outcome))


def _rules(settings: Settings, index: str, weight: float) -> Rules:
    """The served rules of the index with `weight`, expansion switched on."""
    return Rules(switched_on(settings, index, weight=weight), clock=time.monotonic)


def _table(settings: Settings, index: str) -> IndexSettings:
    return settings.index_for(index) or IndexSettings()


def _basis(ranker: Ranker, settings: Settings, labels: Labels, options: RewardOptions) -> Basis:
    rules = _table(settings, options.index).model_dump(mode="json", exclude={"weight", "enabled"})
    return Basis(
        weights=tuple(sorted(options.weights)),
        mix={measure: share for measure, share in sorted(options.mix.items()) if share},
        index=options.index,
        index_state=ranker.fingerprint[:_DIGITS],
        labels_digest=labels.digest()[:_DIGITS],
        rules=sha256_of(rules)[:_DIGITS],
    )
