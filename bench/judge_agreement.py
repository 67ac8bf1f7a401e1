"""The agreement of judges with people, counted query by query, and bootstrap intervals of its difference."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from judge_folds import FOLD_COUNT, HIGHEST, JsonRow, JudgedPairs, Pair, grade_expected, read_fold

from querylift.index_tools.judging.agreement import compute_confusion_f1, compute_confusion_kappa
from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE
from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.criteria_grades import sum_criteria

BOOTSTRAP_ROUNDS = 1000
QueryConfusions = dict[str, Any]
"""The confusion matrix of each query, people's grades by the judge's: shape (grades, grades)."""


class JudgeResults:
    """The fold files of a folder, by method and seed. A seed that lacks a fold is left out."""

    def __init__(self, folder: Path) -> None:
        self.rows: dict[str, dict[int, list[JsonRow]]] = defaultdict(dict)
        self.unfinished: list[str] = []
        rows: dict[tuple[str, int], list[JsonRow]] = defaultdict(list)
        for path in sorted(folder.glob("*-*-*.json")):
            name, seed_text, _ = path.stem.rsplit("-", 2)
            rows[name, int(seed_text)].append(read_fold(path))
        for (method, seed), folds in sorted(rows.items()):
            if len(folds) == FOLD_COUNT and not folds[0]["description"]["inner"]:
                self.rows[method][seed] = folds
            else:
                self.unfinished.append(f"{method}, seed {seed}")
        if not self.rows:
            raise SettingsError(f"{folder} holds no method with all {FOLD_COUNT} folds; run `bench/judge folds` first")
        check_one_setting(folder, [row for seeds in self.rows.values() for folds in seeds.values() for row in folds])

    def count_confusions(self, data: JudgedPairs, method: str, part: str = "") -> list[QueryConfusions]:
        """Return the confusions of a method for each seed: of the test queries, or of a `part` such as `train`."""
        return [
            count_query_confusions(data, [row[part] if part else row for row in folds])
            for folds in self.rows[method].values()
        ]


def check_one_setting(folder: Path, rows: Sequence[JsonRow]) -> None:
    """Raise SettingsError when the rows differ in more than method and seed."""
    for row in rows:
        for name in ("method", "seed"):
            row["description"]["settings"]["training"].pop(name, None)
    if any(row["description"] != rows[0]["description"] for row in rows):
        raise SettingsError(f"the files of {folder} were made with different settings; keep those of one in a folder")


def count_query_confusions(data: JudgedPairs, rows: Sequence[Mapping[str, Any]]) -> QueryConfusions:
    """Return the confusions of the predictions in `rows`, one row for each fold."""
    confusions: QueryConfusions = {}
    for row in rows:
        judged = grade_expected(row["expected"], row["thresholds"])
        add_confusions(confusions, data, zip(map(tuple, row["pairs"]), judged, strict=True))
    return confusions


def add_confusions(confusions: QueryConfusions, data: JudgedPairs, judged: Iterable[tuple[Any, int]]) -> None:
    """Add the judge's grades in `judged` to `confusions`: in the row of the person's grade, and the column of the judge's."""
    import numpy as np

    for pair, grade in judged:
        counts = confusions.setdefault(pair[0], np.zeros((HIGHEST + 1, HIGHEST + 1)))
        counts[data.grades[pair], grade] += 1


def grade_large_model(data: JudgedPairs, criteria: Mapping[Pair, dict[str, int]]) -> QueryConfusions:
    """Return the confusions of a large model's sums of criteria, cut at thresholds from the other folds."""
    sums = {pair: sum_criteria(criteria[pair]) for pair in sorted(data.grades.keys() & criteria.keys())}
    confusions: QueryConfusions = {}
    add_confusions(confusions, data, data.grade_sums(sums).items())
    return confusions


def describe_confusions(counts: Any) -> list[float]:
    """Return kappa and macro F1 of a confusion matrix: kappa on all grades, on relevant or not, then both F1."""
    first = DEFAULT_SCALE.relevant_from
    binary = [
        [float(counts[:first, :first].sum()), float(counts[:first, first:].sum())],
        [float(counts[first:, :first].sum()), float(counts[first:, first:].sum())],
    ]
    return [
        measure(table)
        for measure in (compute_confusion_kappa, compute_confusion_f1)
        for table in (counts.tolist(), binary)
    ]


def describe_runs(runs: Sequence[QueryConfusions]) -> list[float]:
    """Return the mean over seeds of `describe_confusions`."""
    values = [describe_confusions(sum(run.values())) for run in runs]
    return [statistics.fmean(column) for column in zip(*values, strict=True)]


def bootstrap_difference(
    first: Sequence[QueryConfusions], second: Sequence[QueryConfusions], *, binary: bool = False
) -> tuple[float, float, float]:
    """Return the low end, the value and the high end of the difference in kappa, first less second.

    Kappa is that on all grades, or that on relevant or not when `binary`. Each round draws as many queries as there are, and
    as many seeds of each method as it has, all with replacement. It takes the mean over the drawn seeds.
    """
    generator = random.Random(0)
    query_ids = sorted(first[0])
    measure = 1 if binary else 0

    def compute_mean(runs: Sequence[QueryConfusions], ids: Sequence[str]) -> float:
        drawn = generator.choices(range(len(runs)), k=len(runs))
        values = {
            seed: describe_confusions(sum(runs[seed][query_id] for query_id in ids if query_id in runs[seed]))[measure]
            for seed in sorted(set(drawn))
        }
        return statistics.fmean(values[seed] for seed in drawn)

    rounds = []
    for _ in range(BOOTSTRAP_ROUNDS):
        ids = generator.choices(query_ids, k=len(query_ids))
        rounds.append(compute_mean(first, ids) - compute_mean(second, ids))
    rounds.sort()
    value = describe_runs(first)[measure] - describe_runs(second)[measure]
    return rounds[int(0.025 * len(rounds))], value, rounds[int(0.975 * len(rounds)) - 1]


def group_grades(grades: Mapping[Pair, int]) -> dict[str, dict[str, int]]:
    """Return the grades by query and document."""
    grouped: dict[str, dict[str, int]] = defaultdict(dict)
    for (query_id, doc_id), grade in grades.items():
        grouped[query_id][doc_id] = grade
    return dict(grouped)


def count_pairs(run: QueryConfusions) -> int:
    """Return the number of pairs in the confusions of all queries."""
    return int(sum(float(counts.sum()) for counts in run.values()))
