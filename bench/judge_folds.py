"""Pairs that people and a large model judged, and the predictions of small judges that learned from the model, fold by fold."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE
from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.annotations import CRITERIA, Annotation
from querylift.trainer.judge.criteria_grades import choose_thresholds, grade_by_thresholds, sum_criteria
from querylift.trainer.judge.reasoning_template import describe_reasoning, read_facts
from querylift.trainer.judge.student.judge_model import JudgeModel, load_judge_model
from querylift.trainer.judge.student.judge_training import (
    MAX_CALIBRATION_PAIRS,
    choose_grade_thresholds,
    compute_expected_grades,
    predict_probabilities,
    train_judge,
)
from querylift.trainer.judge.student.student_config import JudgeConfig

FOLD_COUNT, SHUFFLE_SEED = 5, 0
HIGHEST = DEFAULT_SCALE.highest
PASS_PAIRS = 400
"""Pairs that both passes are compared on, and training pairs for the thresholds of both. The reasoning pass is slow."""
Pair = tuple[str, str]
JsonRow = dict[str, Any]


class JudgedPairs:
    """The pairs of a corpus that people judged, and what a large model said of each."""

    def __init__(self, corpus: Corpus, criteria: Path, facts: Path | None, model: str) -> None:
        split = corpus.split_names[0]
        self.queries = corpus.read_queries(split)
        self.grades = {
            (query_id, doc_id): min(max(grade, 0), HIGHEST)
            for query_id, grades in corpus.read_qrels(split).items()
            for doc_id, grade in grades.items()
        }
        self.documents = {
            document.doc_id: f"{document.title} {document.text}".strip() for document in corpus.iter_documents()
        }
        self.criteria = read_criteria(criteria, model)
        self.facts = read_facts(facts) if facts else {}
        self.model, self.name = model, corpus.name

    @property
    def pairs(self) -> list[Pair]:
        """All judged pairs that the model graded, in the order of their ids."""
        return sorted(self.grades.keys() & self.criteria.keys())

    def split_queries(self) -> list[list[str]]:
        """Return the query ids of each fold."""
        query_ids = sorted({query_id for query_id, _ in self.pairs})
        random.Random(SHUFFLE_SEED).shuffle(query_ids)
        return [query_ids[start::FOLD_COUNT] for start in range(FOLD_COUNT)]

    def annotate(self, pairs: Sequence[Pair], thresholds: Sequence[int]) -> list[Annotation]:
        """Return the model's annotations of `pairs`, with grades by `thresholds` and reasoning by the template."""
        return [
            Annotation(
                query_id,
                doc_id,
                self.queries[query_id],
                self.documents[doc_id],
                grade_by_thresholds(sum_criteria(self.criteria[query_id, doc_id]), thresholds),
                self.model,
                self.criteria[query_id, doc_id],
                describe_reasoning(self.criteria[query_id, doc_id], self.facts.get(query_id), self.documents[doc_id]),
            )
            for query_id, doc_id in pairs
        ]

    def choose_cuts(self, pairs: Sequence[Pair]) -> tuple[int, ...]:
        """Return the sums of criteria that make grades as frequent as people's on `pairs`."""
        return choose_thresholds(
            [sum_criteria(self.criteria[pair]) for pair in pairs],
            [self.grades[pair] for pair in pairs],
            highest=HIGHEST,
        )

    def grade_sums(self, sums: Mapping[Pair, int]) -> dict[Pair, int]:
        """Return the grades of a large model's sums of criteria, each fold cut at thresholds from the other folds."""
        grades: dict[Pair, int] = {}
        for fold in self.split_queries():
            test = set(select_pairs(list(sums), fold))
            train = [pair for pair in sums if pair not in test]
            cuts = choose_thresholds(
                [sums[pair] for pair in train], [self.grades[pair] for pair in train], highest=HIGHEST
            )
            grades |= {pair: grade_by_thresholds(sums[pair], cuts) for pair in sorted(test)}
        return grades


def read_criteria(path: Path, model: str) -> dict[Pair, dict[str, int]]:
    """Return the criteria of one model by pair. Rows that lack a criterion are left out."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    criteria = {}
    with opener(path, "rt", encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            if row["model"] == model and all(isinstance(row.get(name), int) for name in CRITERIA):
                criteria[row["query_id"], row["doc_id"]] = {name: row[name] for name in CRITERIA}
    return criteria


def select_pairs(pairs: Sequence[Pair], query_ids: Sequence[str]) -> list[Pair]:
    """Return the pairs of some queries."""
    wanted = set(query_ids)
    return [pair for pair in pairs if pair[0] in wanted]


def run_fold(
    data: JudgedPairs,
    train: Sequence[Pair],
    test: Sequence[Pair],
    config: JudgeConfig,
    states: dict[Any, Any],
    *,
    compare_passes: bool = True,
) -> JsonRow:
    """Train on the model's grades of `train`, and predict `test`. `states` is shared by the judges of all folds.

    Thresholds come from the model's grades of `train`, which are as frequent as people's grades of `train`. `compare_passes`
    adds the grades of a sample by both passes.
    """
    cuts = data.choose_cuts(train)
    annotations, test_annotations = data.annotate(train, cuts), data.annotate(test, cuts)
    model = load_judge_model(config.student, grade_count=HIGHEST + 1)
    model.kept_states = states
    started_s = time.monotonic()
    summary = train_judge(model, annotations, config, DEFAULT_SCALE)
    trained_s = time.monotonic() - started_s
    row: JsonRow = {
        "pairs": test,
        "expected": compute_expected_grades(predict_probabilities(model, test_annotations, keep_states=True)),
        "thresholds": summary.thresholds,
        "losses": summary.losses,
        "trained_on": summary.pairs,
        "with_reasoning": summary.with_reasoning,
        "train_s": round(trained_s, 1),
    }
    if not compare_passes:
        return row
    generator = random.Random(0)
    sample = generator.sample(annotations, min(len(annotations), PASS_PAIRS))
    compared = generator.sample(test_annotations, min(len(test_annotations), PASS_PAIRS))
    row["train"], row["standard_pass"] = run_pass(model, sample, compared, with_reasoning=False)
    if config.training.method in ("crsd", "kl"):
        _, row["reasoning_pass"] = run_pass(model, sample, compared, with_reasoning=True)
    return row


def run_pass(
    model: JudgeModel, sample: Sequence[Annotation], compared: Sequence[Annotation], *, with_reasoning: bool
) -> tuple[JsonRow, JsonRow]:
    """Return one pass's expected grades of `sample`, then of `compared`, both with thresholds from `sample`."""
    on_sample, on_compared = (
        compute_expected_grades(
            predict_probabilities(model, annotations, with_reasoning=with_reasoning, keep_states=True)
        )
        for annotations in (sample, compared)
    )
    thresholds = choose_grade_thresholds(on_sample, [annotation.grade for annotation in sample], highest=HIGHEST)

    def make_row(annotations: Sequence[Annotation], expected: Sequence[float]) -> JsonRow:
        pairs = [annotation.pair_key for annotation in annotations]
        return {"pairs": pairs, "expected": expected, "thresholds": thresholds}

    return make_row(sample, on_sample), make_row(compared, on_compared)


def run_cosine_fold(
    data: JudgedPairs, train: Sequence[Pair], test: Sequence[Pair], config: JudgeConfig, states: dict[Any, Any]
) -> JsonRow:
    """Grade `test` by the cosine of the untrained encoder alone, with thresholds from `train`."""
    annotations, test_annotations = (data.annotate(pairs, data.choose_cuts(train)) for pairs in (train, test))
    model = load_judge_model(config.student, grade_count=HIGHEST + 1)
    model.kept_states = states
    annotations = random.Random(0).sample(annotations, min(len(annotations), MAX_CALIBRATION_PAIRS))
    thresholds = choose_grade_thresholds(
        compute_cosines(model, annotations), [annotation.grade for annotation in annotations], highest=HIGHEST
    )
    return {"pairs": test, "expected": compute_cosines(model, test_annotations), "thresholds": thresholds, "train_s": 0}


def compute_cosines(model: JudgeModel, annotations: Sequence[Annotation]) -> list[float]:
    """Return the cosine of query and document of each pair."""
    import torch

    model.set_training(False)
    texts = [model.tokenize_pair(annotation.query, annotation.document) for annotation in annotations]
    order = sorted(range(len(texts)), key=lambda position: len(texts[position][1]))
    cosines = [0.0] * len(texts)
    with torch.no_grad():
        for start in range(0, len(order), 64):
            positions = order[start : start + 64]
            features = model.compute_features([texts[position] for position in positions], keep_states=True)
            for position, cosine in zip(positions, features[:, -1].tolist(), strict=True):
                cosines[position] = cosine
    return cosines


def grade_expected(expected: Sequence[float], thresholds: Sequence[float]) -> list[int]:
    """Return the grade of each expected grade."""
    return [sum(value >= threshold for threshold in thresholds) for value in expected]


def describe_run(data: JudgedPairs, config: JudgeConfig, *, inner: bool) -> JsonRow:
    """Return all that decides a fold's predictions, beside the fold itself."""
    settings = json.loads(json.dumps(config.model_dump()))
    return {"settings": settings, "model": data.model, "corpus": data.name, "inner": inner}


def read_fold(path: Path) -> JsonRow:
    """Return the predictions in a file that `bench/judge folds` wrote. Raises SettingsError."""
    try:
        row: JsonRow = json.loads(path.read_text(encoding="utf-8"))
        row["description"]["settings"]["training"]["method"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingsError(f"{path} holds no predictions of this bench; remove the file") from None
    return row


def check_description(path: Path, wanted: Mapping[str, Any]) -> None:
    """Raise SettingsError when the predictions in `path` were made with other settings than `wanted`."""
    found = read_fold(path)["description"]
    if found != wanted:
        raise SettingsError(f"{path} was made with other settings; name another --out, or remove the file")
