"""The pairs that a judge learns from: chosen so that every grade is there, and what the teacher said of each."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from querylift.index_tools.corpora.trec_files import iter_qrels, read_topics
from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import fold_query
from querylift.trainer.judge.annotations import CRITERIA, Annotation
from querylift.trainer.judge.criteria_grades import MAX_SUM, sum_criteria


def choose_balanced_pairs(annotations: Sequence[Annotation], *, max_pairs: int, seed: int) -> list[Annotation]:
    """Return up to `max_pairs` annotations in a random order, in equal numbers of each grade as far as these reach.

    A grade that has fewer than its share leaves the difference to the others. So all annotations are returned, balanced or
    not, when there are no more than `max_pairs`.
    """
    generator = random.Random(seed)
    by_grade: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        by_grade[annotation.grade].append(annotation)
    chosen: list[Annotation] = []
    groups = sorted(by_grade.values(), key=len)
    for position, group in enumerate(groups):
        share = (max_pairs - len(chosen)) // (len(groups) - position)
        chosen += generator.sample(group, min(share, len(group)))
    generator.shuffle(chosen)
    return chosen


def check_grades(annotations: Sequence[Annotation], *, source: str) -> None:
    """Raise SettingsError when there are no annotations, or when all have one grade."""
    grades = {annotation.grade for annotation in annotations}
    if not grades:
        raise SettingsError(f"{source} holds no annotation; write some with `querylift judge annotate`")
    if len(grades) == 1:
        raise SettingsError(
            f"all {len(annotations)} annotations of {source} have grade {grades.pop()}; a judge learns from two grades or more"
        )


def compute_mean_sums(annotations: Iterable[Annotation], scale: GradeScale) -> list[float]:
    """Return the mean sum of the criteria for each grade of `scale`. A mean below that of a lower grade is raised to it.

    A grade without criteria gets a sum between those of its neighbours. Without any criteria the sums are spread evenly.
    """
    import numpy as np

    sums: dict[int, list[int]] = defaultdict(list)
    for annotation in annotations:
        if set(annotation.criteria) == set(CRITERIA):
            sums[annotation.grade].append(sum_criteria(annotation.criteria))
    known = sorted(sums) or [0, scale.highest]
    means = [float(np.mean(sums[grade])) for grade in known] if sums else [0.0, float(MAX_SUM)]
    return [float(mean) for mean in np.interp(scale.grades, known, np.maximum.accumulate(means))]


def compute_soft_labels(annotation: Annotation, mean_sums: Sequence[float]) -> list[float]:
    """Return a probability for each grade: half for the grade itself, half shared by the two grades next to the criteria.

    The sum of the criteria lies between the mean sums of two grades (`compute_mean_sums`), and the nearer one gets more.
    Without all four criteria the grade gets everything.
    """
    import numpy as np

    probabilities = [0.0] * len(mean_sums)
    if set(annotation.criteria) != set(CRITERIA):
        probabilities[annotation.grade] = 1.0
        return probabilities
    place = float(np.interp(sum_criteria(annotation.criteria), mean_sums, range(len(mean_sums))))
    lower = min(int(place), len(mean_sums) - 2)
    probabilities[annotation.grade] += 0.5
    probabilities[lower] += 0.5 * (lower + 1 - place)
    probabilities[lower + 1] += 0.5 * (place - lower)
    return probabilities


def read_excluded_queries(path: Path) -> dict[str, str]:
    """Return the queries in a file of queries or of judgments, by id. Raises DataError, SettingsError.

    The text of a query is "" in a file of judgments.

    A file whose lines are not all judgments is read as queries. When that fails too, the error is the one of the format that
    the first line has.
    """
    try:
        queries = {qrel.query_id: "" for _, qrel in iter_qrels(path)}
    except DataError as qrels_error:
        try:
            queries = read_topics(path)
        except DataError as topics_error:
            raise (qrels_error if qrels_error.line > 1 else topics_error) from None
    if not queries:
        raise SettingsError(f"{path} holds no query; name a file of queries or of judgments")
    return queries


def leave_out_queries(annotations: Iterable[Annotation], excluded: Mapping[str, str]) -> list[Annotation]:
    """Return the annotations of all other queries. `excluded` are texts by query id; an id or an equal text excludes a query.

    Letter case and spaces of a text do not count, and an empty text excludes nothing.
    """
    texts = {fold_query(text) for text in excluded.values() if text}
    return [row for row in annotations if row.query_id not in excluded and fold_query(row.query) not in texts]
