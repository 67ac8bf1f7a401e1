"""`querylift train expander`: a fast expander of the form `terms`, trained by stages.

    index     the index's own texts as queries, the nearest documents' terms as answers: no judgments, no teacher
    judged    judged queries: the terms of their relevant documents, and those that a teacher's candidates agree on
    feedback  sets of terms drawn from the model, compared on the engine by what they do to nDCG@10; a preference loss

Each stage leaves its matrix in OUT/training, so that a run that was stopped goes on after the last one that ended.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.document_parts import Parts
from querylift.index_tools.fast_expander.index_reader import scan
from querylift.index_tools.fast_expander.served_files import Statistics
from querylift.index_tools.fast_expander.surface_words import Surfaces
from querylift.index_tools.fast_expander.term_matrix import mean_vectors, read_documents, write_head
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import clean_prose, from_terms
from querylift.plugin.fast_expander.encoder import MODEL, TOKENIZER, Encoder
from querylift.plugin.fast_expander.folder import ABOUT, About, check_files, facts_of_all, read_about
from querylift.plugin.fast_expander.term_matrix import HEAD
from querylift.plugin.fast_expander.vocabulary import WORD_ENDS, WORDS
from querylift.trainer.candidates import Candidate
from querylift.trainer.fast_expander.inverse_cloze import Answers, encoded, normalised, pseudo_queries
from querylift.trainer.fast_expander.matrix_training import Pair, Weights, fit, prefer, sampled_sets
from querylift.trainer.rewards.scoring import TERMS, Labels, RewardOptions, score

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from querylift.plugin.fast_expander.vocabulary import Array
    from querylift.plugin.settings import Settings as PluginSettings
    from querylift.trainer.settings import ExpanderSettings

Stage = Literal["index", "judged", "feedback"]
STAGES: tuple[Stage, ...] = ("index", "judged", "feedback")
_SCALE = 20.0
_FOLDER = "training"


@dataclass(frozen=True, slots=True)
class Judged:
    """Judged queries by id with their labels, and what a teacher wrote for some of them."""

    queries: Mapping[str, str]
    labels: Labels
    candidates: Sequence[Candidate] = ()


class Training:
    """Trains the expander in `folder`, which `querylift expander build --form terms` made. Raises SettingsError."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        plugin: PluginSettings,
        settings: ExpanderSettings,
        *,
        seed: int,
        tell: Callable[[str], None],
        threads: int | None = None,
    ) -> None:
        self._about = _checked(folder)
        self._folder = folder
        self._engine = engine
        self._plugin = plugin
        self._settings = settings
        self._seed = seed
        self._tell = tell
        self._threads = threads or os.cpu_count() or 1
        self._encoder = Encoder(folder, self._about.reading)
        parts = Parts.found(folder)
        kept = parts.kept()
        self._keys = [part.keys[row] for part, rows in zip(parts, kept, strict=True) for row in rows]
        statistics = Statistics(parts, kept)
        self._numbers = statistics.numbers
        self._idf = statistics.idf
        self._documents = read_documents(parts, kept, statistics)
        if len(self._numbers) != self._about.terms:
            raise SettingsError(f"the parts of {folder} are not those that it was built from; build it again")
        self._answers = Answers(self._documents, neighbours=settings.neighbours, temperature=settings.temperature)
        self._sources = parts.plan()["text"]

    def run(self, stages: Sequence[Stage], out: Path, judged: Judged | None) -> None:
        """The stages in their order, each from the one before; the last one's matrix goes into `out`."""
        work = out / _FOLDER
        work.mkdir(parents=True, exist_ok=True)
        weights, done = self._start(), list(self._about.trained)
        for stage in stages:
            done.append(stage)
            kept = work / f"{len(done)}-{stage}.npz"
            if kept.is_file():
                self._tell(f"{stage}: done before")
                weights = _load(kept)
                continue
            self._tell(f"{stage}:")
            weights = self._stage(stage, weights, work, judged)
            _save(kept, weights)
        self._write(out, weights, done)

    def _start(self) -> Weights:
        """Untrained rows, and how common each term is among what documents say."""
        said = np.bincount(self._documents.terms, weights=self._documents.weights, minlength=self._documents.count)
        return Weights(mean_vectors(self._documents) * _SCALE, np.log(said / said.sum() + 1e-9).astype(np.float32))

    def _stage(self, stage: Stage, weights: Weights, work: Path, judged: Judged | None) -> Weights:
        if stage == "index":
            return self._by_index(weights, work)
        if judged is None:
            raise SettingsError(f"stage {stage} needs judged queries; name them with --corpus and --split")
        return self._by_judgments(weights, judged, work) if stage == "judged" else self._by_feedback(weights, judged)

    def _by_index(self, weights: Weights, work: Path) -> Weights:
        vectors = self._pseudo_vectors(work)
        how = self._settings
        self._tell(f"{len(vectors)} pseudo-queries")
        return fit(
            weights,
            vectors,
            self._answers.to(vectors),
            epochs=how.epochs,
            learning_rate=how.learning_rate,
            batch_size=how.batch_size,
            seed=self._seed,
            tell=self._tell,
        )

    def _by_judgments(self, weights: Weights, judged: Judged, work: Path) -> Weights:
        """Judged queries' own targets, `judged_share` of each, the rest what their neighbours say."""
        how = self._settings
        ids, targets = self._judged_targets(judged)
        if not ids:
            raise SettingsError("no judged query has a relevant document or a candidate with a term of the index")
        vectors = encoded(self._encoder, (judged.queries[one] for one in ids), threads=self._threads)
        mixed = how.judged_share * targets + (1 - how.judged_share) * self._answers.to(vectors)
        self._tell(f"{len(ids)} judged queries")
        return fit(
            weights,
            vectors,
            normalised(mixed.tocsr()),
            epochs=how.judged_epochs,
            learning_rate=how.judged_learning_rate,
            batch_size=min(how.batch_size, 128),
            seed=self._seed,
            tell=self._tell,
        )

    def _by_feedback(self, weights: Weights, judged: Judged) -> Weights:
        how = self._settings
        ids = [one for one in judged.labels.usable() if one in judged.queries]
        if not ids:
            raise SettingsError("no judged query has a relevant document; name a split whose queries have some")
        vectors = encoded(self._encoder, (judged.queries[one] for one in ids), threads=self._threads)
        pairs = self._pairs(weights, ids, vectors, judged)
        self._tell(f"{len(pairs)} of {len(ids)} queries give a pair")
        if not pairs:
            return weights
        return prefer(
            weights,
            vectors,
            pairs,
            beta=how.beta,
            epochs=how.feedback_epochs,
            learning_rate=how.feedback_learning_rate,
            batch_size=64,
            seed=self._seed,
            tell=self._tell,
        )

    def _pairs(self, weights: Weights, ids: Sequence[str], vectors: Array, judged: Judged) -> list[Pair]:
        """The best and the worst of the sets drawn for a query, where they differ by the margin."""
        how, draw = self._settings, np.random.default_rng(self._seed)
        likely = weights.likely(vectors)
        size = min(self._about.shape.terms, max(1, likely.shape[1] // 2))  # a set of all terms compares with nothing
        sets = [sampled_sets(likely, size=size, draw=draw) for _ in range(how.samples)]
        names = list(self._numbers)
        found: dict[str, list[tuple[float, int]]] = defaultdict(list)
        candidates = (
            self._candidate(judged, query_id, number, likely[row], drawn[row], names)
            for number, drawn in enumerate(sets)
            for row, query_id in enumerate(ids)
        )
        options = RewardOptions(
            index=self._about.source.index,
            weights=how.weights,
            mix={"ndcg_at_10": 1.0, "recall_at_100": how.recall_share},
        )
        scoring = score(candidates, engine=self._engine, settings=self._plugin, labels=judged.labels, options=options)
        for scored in scoring.scored:
            found[scored.candidate.query_id].append((scored.reward.reward, int(scored.candidate.params["sample"])))
        pairs = []
        for row, query_id in enumerate(ids):
            ranked = sorted(found[query_id])
            if ranked and ranked[-1][0] - ranked[0][0] >= how.margin:
                pairs.append(Pair(row, sets[ranked[-1][1]][row], sets[ranked[0][1]][row]))
        return pairs

    def _candidate(
        self, judged: Judged, query_id: str, number: int, likely: Array, terms: Array, names: Sequence[str]
    ) -> Candidate:
        power = self._about.shape.power
        weighed = ((names[int(term)], float(likely[term]) ** power) for term in terms)
        expansion = from_terms(weighed, field=self._about.source.field)
        assert expansion is not None
        params = {"sample": number, TERMS: expansion.to_json()}
        return Candidate(query_id, judged.queries[query_id], "expander", "expander", expansion.words(), params)

    def _judged_targets(self, judged: Judged) -> tuple[list[str], csr_matrix]:
        """Ids, and for each a row that sums to 1: relevant documents' terms and voted terms, half each where both are."""
        from scipy.sparse import vstack

        places = {key.partition("/")[2]: number for number, key in enumerate(self._keys)}
        voted = self._voted(judged.candidates)
        ids, rows = [], []
        for query_id in judged.queries:
            grades = judged.labels.qrels.get(query_id, {})
            relevant = [places[d] for d, g in grades.items() if g >= judged.labels.relevant_from and d in places]
            sources = [self._answers.of_documents(relevant)] if relevant else []
            sources += [voted[query_id]] if query_id in voted else []
            row = normalised(sum(sources[1:], sources[0])) if sources else None
            if row is not None and row.nnz:
                ids.append(query_id)
                rows.append(row)
        return ids, vstack(rows).tocsr() if rows else None

    def _voted(self, candidates: Iterable[Candidate]) -> dict[str, csr_matrix]:
        """By query: terms of the index by the share of its candidates that have them, times idf."""
        from scipy.sparse import csr_matrix

        texts: dict[str, list[str]] = defaultdict(list)
        for candidate in candidates:
            texts[candidate.query_id].append(clean_prose(candidate.text))
        surfaces = Surfaces(self._engine, self._about.source.indices[0], self._about.source.field)
        words = sorted({word for several in texts.values() for text in several for word in text.lower().split()})
        made = surfaces.made_of(words)
        rows = {}
        for query_id, several in texts.items():
            votes = Counter(term for text in several for term in {t for w in text.lower().split() for t in made[w]})
            known = {self._numbers[term]: count for term, count in votes.items() if term in self._numbers}
            if known:
                at = np.array(sorted(known))
                heavy = np.array([known[int(number)] for number in at]) / len(several) * self._idf[at]
                row = csr_matrix((heavy, (np.zeros(len(at), dtype=int), at)), shape=(1, len(self._numbers)))
                rows[query_id] = normalised(row)
        return rows

    def _pseudo_vectors(self, work: Path) -> Array:
        """Vectors of the pseudo-queries, made once."""
        path = work / "queries.npy"
        if path.is_file():
            return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
        draw = random.Random(self._seed)
        share = self._settings.max_documents / max(len(self._keys), 1)
        texts = [
            query
            for hits in scan(self._engine, self._about.source.index, sources=self._sources)
            for hit in hits
            if hit.text and (share >= 1 or draw.random() < share)
            for query in pseudo_queries(hit.text, count=self._settings.per_document, draw=draw)
        ]
        vectors = encoded(self._encoder, texts, threads=self._threads)
        _whole(path, lambda file: np.save(file, vectors))
        return vectors

    def _write(self, out: Path, weights: Weights, done: Sequence[str]) -> None:
        for name in (MODEL, TOKENIZER, WORDS, WORD_ENDS):
            shutil.copyfile(self._folder / name, out / name)
        write_head(out / HEAD, weights.rows, weights.bias)
        about = self._about.model_copy(
            update={"trained": tuple(done), "files": facts_of_all(out, [MODEL, TOKENIZER, WORDS, WORD_ENDS, HEAD])}
        )
        (out / ABOUT).write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _checked(folder: Path) -> About:
    about = read_about(folder)
    if about.form != "terms":
        raise SettingsError(
            f"{folder} is of the form {about.form!r}, which is not trained; build one with --form terms"
        )
    check_files(folder, about)
    return about


def _save(path: Path, weights: Weights) -> None:
    _whole(path, lambda file: np.savez(file, rows=weights.rows, bias=weights.bias))


def _load(path: Path) -> Weights:
    with np.load(path, allow_pickle=False) as found:
        return Weights(found["rows"], found["bias"])


def _whole(path: Path, write: Callable[[Any], None]) -> None:
    part = path.with_suffix(".tmp")
    with part.open("wb") as file:
        write(file)
    part.replace(path)
