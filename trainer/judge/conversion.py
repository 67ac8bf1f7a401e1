"""Make annotations of rows that were made elsewhere: annotations, criteria without a grade, and judgments.

The form of a row shows in its fields. A row with "grade" is an annotation, and a row with the four criteria alone is one of
criteria. A file that does not begin with "{" holds judgments in TREC or BEIR form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.json_rows import get_json_id, read_jsonl
from querylift.index_tools.corpora.trec_files import iter_qrels
from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.text_files import read_first_character
from querylift.trainer.judge.annotations import (
    CRITERIA,
    UNKNOWN_MODEL,
    Annotation,
    merge_duplicates,
    parse_annotation,
    parse_criteria,
)
from querylift.trainer.judge.criteria_grades import choose_thresholds, grade_by_thresholds, sum_criteria
from querylift.trainer.judge.document_cut import DEFAULT_MAX_WORDS, cut_document
from querylift.trainer.judge.reasoning_template import QueryFacts, describe_reasoning

PEOPLE = "people"
"""The model of judgments that name none."""


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """A row as its file has it. `grade` is None for criteria alone. Empty texts come from the corpus.

    `is_judgment` is true of a row in TREC or BEIR form.
    """

    path: Path
    line_number: int
    query_id: str
    doc_id: str
    model: str
    grade: int | None
    criteria: Mapping[str, int] = field(default_factory=dict)
    reasoning: str = ""
    query: str = ""
    document: str = ""
    is_judgment: bool = False


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """The rows of the wanted model, and the number of rows of other models."""

    rows: list[ImportedRow]
    other_count: int


@dataclass(frozen=True, slots=True)
class RowTexts:
    """The texts of queries and of documents, by id."""

    queries: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """The annotations, each pair once, and what was counted on the way.

    `conflict_count` pairs had different grades. `lost_count` rows have a query or a document that the corpus lacks.
    """

    annotations: list[Annotation]
    conflict_count: int
    lost_count: int


def read_imported_rows(path: Path, scale: GradeScale) -> Iterator[ImportedRow]:
    """Yield the rows of a file, which may be gzipped. Raises DataError with path and line, and SettingsError.

    A judgment below 0 means not relevant, and counts as 0.
    """
    if read_first_character(path) == "{":
        yield from (_parse_row(row, path, number, scale) for number, row in read_jsonl(path))
        return
    for number, qrel in iter_qrels(path):
        grade = max(0, qrel.relevance)
        check_grade(grade, scale, path, number)
        yield ImportedRow(path, number, qrel.query_id, qrel.doc_id, "", grade, is_judgment=True)


def check_grade(grade: int, scale: GradeScale, path: Path, line_number: int) -> None:
    """Raise DataError when the grade is off the scale."""
    if not scale.contains(grade):
        raise DataError(
            path,
            line_number,
            f"grade {grade} is off the scale of {scale.highest + 1} grades; give 0 to {scale.highest}, or another --scale",
        )


def _parse_row(row: Mapping[str, Any], path: Path, line_number: int, scale: GradeScale) -> ImportedRow:
    criteria = {name: row[name] for name in CRITERIA if name in row}
    model = str(row.get("model") or "")
    if "grade" in row:
        whole_row = {"query": "", "document": "", **row, "criteria": row.get("criteria") or criteria}
        annotation = parse_annotation(whole_row, path, line_number, scale)
        return ImportedRow(
            path,
            line_number,
            annotation.query_id,
            annotation.doc_id,
            model,
            annotation.grade,
            annotation.criteria,
            annotation.reasoning,
            annotation.query,
            annotation.document,
        )
    if len(criteria) < len(CRITERIA):
        raise DataError(
            path,
            line_number,
            f"this row has no grade and lacks criteria; write 'grade', or all of {', '.join(CRITERIA)}",
        )
    query_id, doc_id = (get_json_id(path, line_number, row, names=(name,)) for name in ("query_id", "doc_id"))
    return ImportedRow(path, line_number, query_id, doc_id, model, None, parse_criteria(criteria, path, line_number))


def select_model(rows: Iterable[ImportedRow], model: str | None) -> SelectedRows:
    """Return the rows of `model`, and those that name no model. None selects all rows.

    Raises SettingsError when no row is left, or when rows of criteria are of several models and `model` is None: each model
    needs thresholds of its own.
    """
    all_rows = list(rows)
    models = sorted({row.model for row in all_rows if row.model})
    if model is None:
        criteria_models = sorted({row.model for row in all_rows if row.grade is None})
        if len(criteria_models) > 1:
            raise SettingsError(
                f"the criteria are of several models ({', '.join(criteria_models)}); name one with --model"
            )
        return SelectedRows(_require_rows(all_rows, "the files hold no row; name other files"), 0)
    rows_of_model = [row for row in all_rows if row.model in (model, "")]
    _require_rows(rows_of_model, f"no row is of the model {model!r}; name one of {', '.join(models) or 'none'}")
    return SelectedRows(rows_of_model, len(all_rows) - len(rows_of_model))


def choose_thresholds_like(rows: Iterable[ImportedRow], qrels_path: Path, scale: GradeScale) -> tuple[int, ...]:
    """Return thresholds that make the grades of the criteria rows as frequent as in a file of judgments.

    The rows of the judged queries count, or all rows when the file judges none of these queries. Raises DataError for a grade
    off the scale, and SettingsError when the file is empty or there are no rows of criteria.
    """
    judged_grades: list[int] = []
    judged_ids: set[str] = set()
    for number, qrel in iter_qrels(qrels_path):
        grade = max(0, qrel.relevance)
        check_grade(grade, scale, qrels_path, number)
        judged_grades.append(grade)
        judged_ids.add(qrel.query_id)
    criteria_rows = [row for row in rows if row.grade is None]
    judged_rows = [row for row in criteria_rows if row.query_id in judged_ids] or criteria_rows
    if not judged_grades or not judged_rows:
        problem = "which judges nothing" if not judged_grades else "but no row has criteria alone"
        raise SettingsError(f"--like is {qrels_path}, {problem}; leave it out, or name another file")
    return choose_thresholds([sum_criteria(row.criteria) for row in judged_rows], judged_grades, highest=scale.highest)


def read_row_texts(
    rows: Sequence[ImportedRow], corpus: Corpus, split: str | None, *, max_words: int = DEFAULT_MAX_WORDS
) -> RowTexts:
    """Return the texts that the rows lack, from the corpus: title and text of a document, cut. Reads the documents once."""
    queries = corpus.read_queries(split) if any(not row.query for row in rows) else {}
    doc_ids = frozenset(row.doc_id for row in rows if not row.document)
    documents = corpus.find_documents(doc_ids) if doc_ids else ()
    texts = {document.doc_id: cut_document(f"{document.title} {document.text}", max_words) for document in documents}
    return RowTexts(queries, {doc_id: text for doc_id, text in texts.items() if text})


def convert_rows(
    rows: Iterable[ImportedRow],
    texts: RowTexts,
    *,
    thresholds: Sequence[int],
    facts: Mapping[str, QueryFacts],
    default_model: str | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> ConversionResult:
    """Return an annotation for each row whose query and document have a text, with duplicates merged.

    A row of criteria gets its grade by `thresholds`, and its reasoning by the template. `default_model` is the model of rows
    that name none; None calls judgments `people`.
    """
    annotations = []
    lost_count = 0
    for count, row in enumerate(rows, 1):
        query = row.query or texts.queries.get(row.query_id, "")
        document = row.document or texts.documents.get(row.doc_id, "")
        if query and document:
            model = row.model or default_model or (PEOPLE if row.is_judgment else UNKNOWN_MODEL)
            grade, reasoning = row.grade, row.reasoning
            if grade is None:
                grade = grade_by_thresholds(sum_criteria(row.criteria), thresholds)
                reasoning = describe_reasoning(row.criteria, facts.get(row.query_id), document)
            annotations.append(
                Annotation(row.query_id, row.doc_id, query, document, grade, model, row.criteria, reasoning)
            )
        else:
            lost_count += 1
        progress(count)
    merged = merge_duplicates(annotations)
    return ConversionResult(merged.annotations, merged.conflict_count, lost_count)


def _require_rows(rows: list[ImportedRow], sentence: str) -> list[ImportedRow]:
    if not rows:
        raise SettingsError(sentence)
    return rows
