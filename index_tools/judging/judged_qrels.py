"""Files of a model's grades: TREC qrels, and beside them a sidecar that names the model.

A line of TREC qrels has no place for the model, the probability and the date. The sidecar FILE.judged.jsonl has one JSON
object for each line of FILE: {"query_id", "doc_id", "grade", "probability", "model", "teacher", "date",
"relevant_from"}. A file of qrels with a sidecar was judged by a model. A file without one is taken for people's, and is
never written over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from querylift.index_tools.corpora.json_rows import read_jsonl
from querylift.index_tools.corpora.records import Qrels
from querylift.index_tools.corpora.split_files import SIDECAR_SUFFIX
from querylift.index_tools.corpora.trec_files import write_qrels
from querylift.index_tools.judging.grade_source import GradeSource
from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.files import open_for_replacement


@dataclass(frozen=True, slots=True)
class ModelJudgment:
    """A model's grade of one document for one query, with the probability that the model gave to this grade.

    The probability is None where it is not known any more.
    """

    query_id: str
    doc_id: str
    grade: int
    probability: float | None = None


def locate_sidecar(qrels_path: Path) -> Path:
    """Return the path of the sidecar: `dev.qrels.judged.jsonl` for `dev.qrels`."""
    return qrels_path.with_name(qrels_path.name + SIDECAR_SUFFIX)


def check_replaceable_qrels(path: Path) -> None:
    """Raise SettingsError when `path` exists without a sidecar, because it may hold people's judgments then."""
    if path.exists() and not locate_sidecar(path).exists():
        raise SettingsError(
            f"{path} exists and was not written by a judge; name another file, so that no person's judgments are lost"
        )


def collect_qrels(judgments: Sequence[ModelJudgment]) -> Qrels:
    """Return the grades by query and document."""
    qrels: Qrels = {}
    for judgment in judgments:
        qrels.setdefault(judgment.query_id, {})[judgment.doc_id] = judgment.grade
    return qrels


def list_judgments(qrels: Qrels) -> tuple[ModelJudgment, ...]:
    """Return the judgments of qrels, whose probabilities are not known."""
    return tuple(
        ModelJudgment(query_id, doc_id, grade) for query_id, grades in qrels.items() for doc_id, grade in grades.items()
    )


def write_judged_qrels(path: Path, judgments: Sequence[ModelJudgment], source: GradeSource) -> None:
    """Write TREC qrels to `path`, and the sidecar beside it.

    The sidecar is written first, so that the qrels never look like a person's. Raises SettingsError when `path` holds
    people's judgments, and DataError for an id that no TREC file can hold.
    """
    check_replaceable_qrels(path)
    sidecar = locate_sidecar(path)
    had_sidecar = sidecar.exists()
    origin = {
        "model": source.judge,
        "teacher": source.teacher,
        "date": source.day,
        "relevant_from": source.relevant_from,
    }
    with open_for_replacement(sidecar) as stream:
        for judgment in judgments:
            row = {
                "query_id": judgment.query_id,
                "doc_id": judgment.doc_id,
                "grade": judgment.grade,
                "probability": None if judgment.probability is None else round(judgment.probability, 4),
                **origin,
            }
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    try:
        write_qrels(path, collect_qrels(judgments))
    except BaseException:
        if not had_sidecar:
            sidecar.unlink(missing_ok=True)
        raise


def write_peoples_qrels(path: Path, qrels: Qrels) -> None:
    """Write people's judgments in TREC form, and remove the sidecar of grades that stood there before."""
    write_qrels(path, qrels)
    with suppress(FileNotFoundError):
        locate_sidecar(path).unlink()


def choose_relevant_grade(source: GradeSource | None, *, default: int = 1) -> int:
    """Return the lowest grade that counts as relevant: that of the model's scale where it is known, or else `default`."""
    return default if source is None or source.relevant_from is None else source.relevant_from


def find_grade_source(qrels_path: Path) -> GradeSource | None:
    """Return the model that judged a file of qrels, or None when the file has no sidecar.

    Several models are named together. Raises DataError for a broken sidecar.
    """
    sidecar = locate_sidecar(qrels_path)
    if not sidecar.exists():
        return None
    origins: dict[tuple[str, ...], None] = {}
    relevant_grades: set[int | None] = set()
    for line_number, row in read_jsonl(sidecar):
        origin = row.get("model"), row.get("teacher"), row.get("date")
        if not all(isinstance(value, str) for value in origin):
            raise DataError(sidecar, line_number, "this line lacks 'model', 'teacher' or 'date'; judge the file again")
        origins[tuple(map(str, origin))] = None
        relevant_from = row.get("relevant_from")
        relevant_grades.add(relevant_from if isinstance(relevant_from, int) and relevant_from >= 1 else None)
    if not origins:
        return GradeSource("an unnamed model", "unknown", "")
    judge, teacher, day = (", ".join(dict.fromkeys(values)) for values in zip(*origins, strict=True))
    relevant_from = relevant_grades.pop() if len(relevant_grades) == 1 else None
    return GradeSource(judge, teacher, day, relevant_from=relevant_from)
