"""Annotations: what a teacher, or a person, said about pairs of a query and a document.

A file of annotations holds one JSON object a line:
{"query_id", "doc_id", "query", "document", "grade", "criteria", "reasoning", "model"}. Lines are only ever appended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from querylift.index_tools.corpora.json_rows import get_json_id, get_json_text, read_jsonl
from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.plugin.errors import DataError

CRITERIA = ("exactness", "topicality", "coverage", "contextual_fit")
"""The four criteria of an annotation, each graded 0 to 3."""
MAX_CRITERION_GRADE = 3
UNKNOWN_MODEL = "unknown"
"""The model of a row that names none."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One pair with its grade. `criteria` may be empty, and so may `reasoning`.

    A pair without reasoning trains only the pass of the judge that reads no reasoning.
    """

    query_id: str
    doc_id: str
    query: str
    document: str
    grade: int
    model: str
    criteria: Mapping[str, int] = field(default_factory=dict)
    reasoning: str = ""

    @property
    def pair_key(self) -> tuple[str, str]:
        """The ids of the query and the document."""
        return self.query_id, self.doc_id

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `read_annotations` reads back."""
        return {
            "query_id": self.query_id,
            "doc_id": self.doc_id,
            "query": self.query,
            "document": self.document,
            "grade": self.grade,
            "criteria": dict(self.criteria),
            "reasoning": self.reasoning,
            "model": self.model,
        }


class MergedAnnotations(NamedTuple):
    """Annotations with each pair once. `conflict_count` is the number of pairs that had different grades."""

    annotations: list[Annotation]
    conflict_count: int


def read_annotations(path: Path, scale: GradeScale) -> Iterator[Annotation]:
    """Read the annotations of a file, which may be gzipped.

    Raises DataError with path and line for a broken line or a grade off the scale, and SettingsError when the file
    cannot be read.
    """
    for line_number, row in read_jsonl(path):
        yield parse_annotation(row, path, line_number, scale)


def parse_annotation(row: Mapping[str, Any], path: Path, line_number: int, scale: GradeScale) -> Annotation:
    """Return the annotation that a row holds. `criteria`, `reasoning` and `model` may be missing. Raises DataError."""
    query_id, doc_id = (get_json_id(path, line_number, row, names=(name,)) for name in ("query_id", "doc_id"))
    query, document = (get_json_text(path, line_number, row, names=(name,)) for name in ("query", "document"))
    grade = row.get("grade")
    if not scale.contains(grade):
        raise DataError(
            path, line_number, f"grade {grade!r} is off the scale; give a whole number from 0 to {scale.highest}"
        )
    assert isinstance(grade, int)
    reasoning = row.get("reasoning") or ""
    if not isinstance(reasoning, str):
        raise DataError(path, line_number, f"'reasoning' is {reasoning!r}; write it as a text, or leave it out")
    criteria = parse_criteria(row.get("criteria") or {}, path, line_number)
    model = str(row.get("model") or UNKNOWN_MODEL)
    return Annotation(query_id, doc_id, query, document, grade, model, criteria, reasoning)


def parse_criteria(value: object, path: Path, line_number: int) -> dict[str, int]:
    """Return the criteria of a row, which may lack some. Raises DataError."""
    if not isinstance(value, Mapping):
        raise DataError(path, line_number, f"'criteria' is {value!r}; write an object, or leave it out")
    for name, grade in value.items():
        if name not in CRITERIA:
            raise DataError(path, line_number, f"criterion {name!r} is unknown; use {', '.join(CRITERIA)}")
        if isinstance(grade, bool) or not isinstance(grade, int) or not 0 <= grade <= MAX_CRITERION_GRADE:
            raise DataError(
                path,
                line_number,
                f"criterion {name!r} is {grade!r}; give a whole number from 0 to {MAX_CRITERION_GRADE}",
            )
    return dict(value)


def describe_missing_grades(counts: Mapping[int, int], scale: GradeScale) -> str:
    """Return a sentence when a judge cannot learn from annotations with so many of each grade, or else "".

    It needs two grades. One of them must count as relevant, or the judge will find no relevant document.
    """
    given_grades = [grade for grade, count in counts.items() if count]
    if len(given_grades) == 1:
        return f"all annotations have grade {given_grades[0]}, and a judge learns from two grades or more; add others"
    if given_grades and max(given_grades) < scale.relevant_from:
        return (
            f"no annotation has a grade of {scale.relevant_from} or more, which counts as relevant, so a judge of them finds no "
            "relevant document; add others, or name another --scale"
        )
    return ""


def merge_duplicates(annotations: Iterable[Annotation]) -> MergedAnnotations:
    """Return one annotation for each pair, in the order in which the pairs first come.

    The grade that most rows of a pair give wins, and the lower one in a tie. The first row with that grade stays whole, so
    its criteria and its reasoning belong to the grade.
    """
    rows_by_pair: dict[tuple[str, str], list[Annotation]] = {}
    for annotation in annotations:
        rows_by_pair.setdefault(annotation.pair_key, []).append(annotation)
    conflict_count = sum(len({row.grade for row in rows}) > 1 for rows in rows_by_pair.values())
    return MergedAnnotations([_choose_row(rows) for rows in rows_by_pair.values()], conflict_count)


def _choose_row(rows: list[Annotation]) -> Annotation:
    counts = Counter(row.grade for row in rows)
    majority_grade = min(counts, key=lambda grade: (-counts[grade], grade))
    return next(row for row in rows if row.grade == majority_grade)
