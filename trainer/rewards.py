"""What a candidate is worth: how much better its query ranks on a real engine, through the rewrite that is served.

A reward is the mean over weights of a weighted mix of differences: a measure of the rewritten query less that of the query as
it is. Measures are trec_eval's, by the rules of `index_tools.evaluate`, over the first `DEPTH` hits.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index_tools.corpora import Corpus
from index_tools.engine import Engine
from index_tools.searching import Form, search_body
from index_tools.trec import read_jsonl, read_qrels, replacing
from plugin.errors import DataError, SettingsError
from plugin.expander import Answer
from plugin.expansion import Expansion, clean_prose, from_words, parse
from plugin.flow import Result, Rules, Search, run, search_flow
from plugin.outcome import Outcome
from plugin.settings import IndexSettings, Settings, check
from trainer.candidates import Candidate, read
from trainer.reward_cache import Patience, Ranker, RankingCache

DEPTH = 100
"""Hits that a search asks for."""
STUDENT = "student"
"""Methods that begin so are the student's own samples: raw output, read as the served model's is."""
_CUTS = (5, 10, 15, 20, 30, 100)
MEASURES: Mapping[str, str] = {
    **{f"ndcg_at_{cut}": f"ndcg_cut_{cut}" for cut in _CUTS},
    **{f"recall_at_{cut}": f"recall_{cut}" for cut in _CUTS},
}
"""What a mix may be made of, and trec_eval's name for it."""
_ALWAYS = ("ndcg_at_10", "recall_at_100")
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Labels:
    """Which documents answer which query, and where that is known from. `relevant_from` is the lowest grade recall counts."""

    qrels: Mapping[str, Mapping[str, int]] = field(repr=False)
    source: str
    relevant_from: int = 1

    def usable(self) -> dict[str, dict[str, int]]:
        """The queries that a measure can say something of: those with a relevant document."""
        return {q: dict(g) for q, g in self.qrels.items() if any(grade >= self.relevant_from for grade in g.values())}

    def digest(self) -> str:
        """SHA-256 of the grades, whatever their order."""
        lines = json.dumps([self.qrels, self.relevant_from], sort_keys=True)
        return hashlib.sha256(lines.encode()).hexdigest()


def labels_of(corpus: Corpus, split: str, *, prefix: str = "") -> Labels:
    """The judgments of a split; `prefix` stands before its query ids in the candidates."""
    qrels = {prefix + query_id: grades for query_id, grades in corpus.qrels(split).items()}
    return Labels(qrels, f"{corpus.name}/{split}", corpus.relevant_from)


def labels_from(path: Path, *, relevant_from: int = 1) -> Labels:
    """The labels of a judge: a file of TREC or BEIR qrels, whatever wrote it."""
    return Labels(read_qrels(path), path.name, relevant_from)


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
class Reward:
    """What one candidate changes: measures of the query as it is (`base`) and, per weight, of the rewritten one."""

    query_id: str
    reward: float
    base: Mapping[str, float]
    by_weight: Mapping[float, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate and its reward by the labels of that name.

    `passage` is what the student has to write for it, `words` what is served of that, "" where no word is left.
    """

    candidate: Candidate
    passage: str
    words: str
    reward: Reward
    labels: str

    def to_json(self) -> dict[str, Any]:
        """The candidate's line with the reward's fields added."""
        reward = self.reward
        return {
            **self.candidate.to_json(),
            "passage": self.passage,
            "words": self.words,
            "labels": self.labels,
            "reward": reward.reward,
            "base": dict(reward.base),
            "by_weight": {f"{weight:g}": dict(values) for weight, values in reward.by_weight.items()},
        }


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
    """What the proxy would expand the query with: a student's output as the served model's, else a table's row."""
    if candidate.method.startswith(STUDENT):
        return parse(candidate.text)
    return from_words(_clipped(clean_prose(candidate.text), max_words))


def passage(candidate: Candidate, *, max_words: int | None = None) -> str:
    """What the student has to write to be served as this candidate is, one line; "" where no word is left.

    The cleaned and clipped text, or only its words where the contract would read that text otherwise.
    """
    return _passage(candidate, served(candidate, max_words=max_words), max_words)


def _passage(candidate: Candidate, expansion: Expansion | None, max_words: int | None) -> str:
    if expansion is None:
        return ""
    text = _clipped(clean_prose(candidate.text), None if candidate.method.startswith(STUDENT) else max_words)
    return text if parse(text) == expansion else expansion.text


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
    if cache is None:
        with RankingCache() as own:
            return score(
                candidates,
                engine=engine,
                settings=settings,
                labels=labels,
                options=options,
                cache=own,
                patience=patience,
                progress=progress,
            )
    ranker = Ranker(engine, options.index, cache=cache, patience=patience or Patience())
    scorer = _Scorer(ranker, settings, labels, options)
    found: list[Scored] = []
    for done, block in _blocks(candidates):
        found += scorer.score(block)
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


def write_scored(path: Path, scored: Iterable[Scored]) -> None:
    """Replace `path` by one line for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        for one in scored:
            stream.write(json.dumps(one.to_json(), ensure_ascii=False).encode() + b"\n")


def read_scored(path: Path) -> Iterator[Scored]:
    """What `write_scored` wrote. Raises DataError with path and line, SettingsError where there is no file."""
    for (number, row), candidate in zip(read_jsonl(path), read(path), strict=True):
        try:
            reward = Reward(
                candidate.query_id,
                float(row["reward"]),
                {str(name): float(value) for name, value in row["base"].items()},
                {float(w): {str(n): float(v) for n, v in of.items()} for w, of in row["by_weight"].items()},
            )
            texts = (str(row["passage"]), str(row["words"]), str(row["labels"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = (
                f"no scored candidate ({type(error).__name__}: {error}); write the file with `querylift train score`"
            )
            raise DataError(path, number, problem) from None
        if not math.isfinite(reward.reward):
            raise DataError(path, number, f"the reward is {reward.reward}; score the candidates anew")
        yield Scored(candidate, texts[0], texts[1], reward, texts[2])


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
        return Scored(one.candidate, one.passage, words, reward, self._labels.source)

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


def mixed(base: Mapping[str, float], values: Sequence[Mapping[str, float]], mix: Mapping[str, float]) -> float:
    """The mean over `values` of the sum of share * (measure - base); no change at all is exactly 0."""
    gains = [math.fsum(share * (of[name] - base[name]) for name, share in mix.items()) for of in values]
    return math.fsum(gains) / len(gains)


class Measurer:
    """Takes measures of rankings by trec_eval, many of one query at a time, by the rules of `index_tools.evaluate`.

    `qrels` holds queries with a relevant document only. A ranking without documents counts 0.
    """

    def __init__(
        self, qrels: Mapping[str, Mapping[str, int]], measures: Sequence[str], *, relevant_from: int = 1
    ) -> None:
        import pytrec_eval

        self._names = {measure: MEASURES[measure] for measure in measures}
        judged = {query_id: dict(grades) for query_id, grades in qrels.items()}
        self._trec_eval = pytrec_eval.RelevanceEvaluator(
            judged, set(self._names.values()), relevance_level=relevant_from
        )

    def __call__(self, rankings: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, float]]:
        """The measures of each (query id, document ids), in order."""
        measured: list[dict[str, float]] = [dict.fromkeys(self._names, 0.0) for _ in rankings]
        for places in _rounds(rankings):
            run = {query_id: _falling(rankings[place][1]) for query_id, place in places.items()}
            for query_id, values in self._trec_eval.evaluate(run).items():
                measured[places[query_id]] = {measure: values[name] for measure, name in self._names.items()}
        return measured


def _rounds(rankings: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, int]]:
    """The places of `rankings` as runs: each query at most once in one, rankings without documents in none."""
    rounds: list[dict[str, int]] = []
    seen: defaultdict[str, int] = defaultdict(int)
    for place, (query_id, doc_ids) in enumerate(rankings):
        if doc_ids:
            if seen[query_id] == len(rounds):
                rounds.append({})
            rounds[seen[query_id]][query_id] = place
            seen[query_id] += 1
    return rounds


def _falling(doc_ids: Sequence[str]) -> dict[str, float]:
    """Scores that fall strictly, as trec_eval puts equal ones in the order of the ids; a document counts once."""
    distinct = list(dict.fromkeys(doc_ids))
    return {doc_id: float(len(distinct) - place) for place, doc_id in enumerate(distinct)}


def _rewrite(plain: bytes, index: str, rules: Rules, expansion: Expansion | None) -> Result:
    outcome = Outcome("expanded") if expansion is not None else Outcome("skipped", "nothing")
    return run(search_flow(Search(index, plain), rules), lambda question: Answer(expansion, outcome))


def _rules(settings: Settings, index: str, weight: float) -> Rules:
    """The served rules of the index with `weight`, expansion switched on."""
    table = (settings.index_for(index) or IndexSettings()).model_dump() | {"enabled": True, "weight": weight}
    given = {**settings.model_dump(), "enabled": True, "index": {index: table}}
    return Rules(check(given, source="options"), clock=time.monotonic)


def _blocks(candidates: Iterable[Candidate]) -> Iterator[tuple[int, list[Candidate]]]:
    """Blocks in order, each with the count of candidates up to its end."""
    block: list[Candidate] = []
    done = 0
    for done, candidate in enumerate(candidates, 1):
        block.append(candidate)
        if len(block) == _BLOCK:
            yield done, block
            block = []
    if block:
        yield done, block
