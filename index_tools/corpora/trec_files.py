"""Read and write judgments, runs and queries in the formats that the field exchanges them in.

The readers skip blank lines and report faults as `querylift.plugin.text_files` does. Every writer replaces the file in
one step. When writing fails, the old file stays unchanged.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from querylift.index_tools.corpora.json_rows import get_json_id, get_json_text, read_jsonl
from querylift.index_tools.corpora.records import (
    MAX_GRADE,
    Qrel,
    Qrels,
    Queries,
    Query,
    Run,
    ScoredDoc,
    StrPath,
    normalize_id,
)
from querylift.plugin.errors import DataError
from querylift.plugin.files import open_for_replacement
from querylift.plugin.text_files import read_first_character, read_lines

# --- judgments

_HEADERS = ("score", "relevance", "grade", "label")
"""Possible headings of the third column in BEIR files."""
_TREC_FORM, _BEIR_FORM = "query 0 document grade", "query<TAB>document<TAB>grade"


def read_qrels(path: StrPath) -> Qrels:
    """Read judgments in TREC form (`query 0 document grade`) or BEIR form (three columns and tabs, header optional).

    A repeated judgment counts once. Two different grades for one document raise DataError.
    """
    qrels: Qrels = {}
    for number, qrel in iter_qrels(path):
        grades = qrels.setdefault(qrel.query_id, {})
        if grades.setdefault(qrel.doc_id, qrel.relevance) != qrel.relevance:
            problem = f"document {qrel.doc_id!r} already has grade {grades[qrel.doc_id]} for query {qrel.query_id!r}"
            raise DataError(path, number, f"{problem}; keep one of the two lines")
    return qrels


def iter_qrels(path: StrPath) -> Iterator[tuple[int, Qrel]]:
    """Stream the judgments of a file in its order, each with its line number. The first line decides about the form."""
    lines = read_lines(path)
    for first_number, line in lines:
        beir = line.count("\t") == 2
        if not (beir and line.split("\t")[2].strip().lower() in _HEADERS):
            yield first_number, _parse_first_qrel(path, first_number, line, beir=beir)
        yield from ((number, _parse_qrel(path, number, line, beir=beir)) for number, line in lines)


def _parse_first_qrel(path: StrPath, number: int, line: str, *, beir: bool) -> Qrel:
    if not beir and len(columns := line.split()) != 4:
        problem = f"{len(columns)} columns in a judgment"
        raise DataError(path, number, f"{problem}; write '{_TREC_FORM}', or '{_BEIR_FORM}' with tabs")
    return _parse_qrel(path, number, line, beir=beir)


def _parse_qrel(path: StrPath, number: int, line: str, *, beir: bool) -> Qrel:
    columns = line.split("\t") if beir else line.split()
    if len(columns) != (3 if beir else 4):
        problem = f"{len(columns)} columns in a judgment"
        raise DataError(
            path, number, f"{problem}; write '{_BEIR_FORM if beir else _TREC_FORM}', as the first line does"
        )
    query_id, doc_id = normalize_id(columns[0]), normalize_id(columns[-2])
    if not query_id or not doc_id:
        raise DataError(path, number, "an id of this judgment is empty; give both the query and the document")
    return Qrel(query_id, doc_id, _parse_grade(path, number, columns[-1].strip()))


def write_qrels(path: StrPath, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write judgments in TREC form. A query without judgments gets no line. Whitespace in an id raises DataError."""
    rows = (
        (query_id, "0", doc_id, str(grade)) for query_id, grades in qrels.items() for doc_id, grade in grades.items()
    )
    _write_rows(path, rows)


# --- runs


def read_run(path: StrPath) -> Run:
    """Read a TREC run of six columns. Documents are ordered by falling score, and equal scores by rising rank.

    The score decides because trec_eval and similar tools do not read the rank.
    """
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    for number, rank, scored_doc in _iter_run_lines(path):
        sort_keys = rows.setdefault(scored_doc.query_id, {})
        if scored_doc.doc_id in sort_keys:
            problem = f"document {scored_doc.doc_id!r} is already in the run for query {scored_doc.query_id!r}"
            raise DataError(path, number, f"{problem}; keep one of the two lines")
        sort_keys[scored_doc.doc_id] = (-scored_doc.score, rank)
    return {query_id: sorted(sort_keys, key=sort_keys.__getitem__) for query_id, sort_keys in rows.items()}


def _iter_run_lines(path: StrPath) -> Iterator[tuple[int, int, ScoredDoc]]:
    for number, line in read_lines(path):
        columns = line.split()
        if len(columns) != 6:
            problem = f"this line has {len(columns)} columns, but a run has 6"
            raise DataError(path, number, f"{problem}; write 'query Q0 document rank score tag', ids without spaces")
        query_id, _, doc_id, rank, score, _ = columns
        scored_doc = ScoredDoc(query_id, doc_id, _parse_number(path, number, name="score", text=score))
        yield number, _parse_integer(path, number, name="rank", text=rank), scored_doc


def write_run(path: StrPath, run: Mapping[str, Sequence[str]], tag: str) -> None:
    """Write a TREC run. Scores fall by one from rank to rank, down to 1, so every tool reproduces the order.

    A query without documents gets no line. A repeated document, or whitespace in an id, raises DataError.
    """
    _write_rows(
        path, (row for query_id, doc_ids in run.items() for row in _iter_run_rows(path, query_id, doc_ids, tag))
    )


def _iter_run_rows(path: StrPath, query_id: str, doc_ids: Sequence[str], tag: str) -> Iterator[tuple[str, ...]]:
    seen_ids: set[str] = set()
    for rank, doc_id in enumerate(doc_ids, 1):
        if doc_id in seen_ids:
            raise DataError(path, rank, f"document {doc_id!r} comes twice for query {query_id!r}; list it once")
        seen_ids.add(doc_id)
        yield query_id, "Q0", doc_id, str(rank), str(len(doc_ids) - rank + 1), tag


# --- queries

_TOP = re.compile(r"<top>(.*?)(</top>|(?=<top>)|\Z)", re.DOTALL | re.IGNORECASE)
_NUM = re.compile(r"<num>\s*(?:Number:)?\s*([^\s<]+)", re.IGNORECASE)
_TITLE = re.compile(r"<title>\s*(?:Topic:)?(.*?)(?=</?[a-z]|\Z)", re.DOTALL | re.IGNORECASE)


def read_topics(path: StrPath) -> Queries:
    """Read queries from TREC topics (`<top>` with `<num>` and `<title>`), from `id<TAB>text`, or from JSONL.

    The first character tells the format: `<`, `{`, or any other. A JSONL line has `_id` (or `id`) and `text`. A
    repeated id and a query without text raise DataError.
    """
    queries: Queries = {}
    for number, query in _iter_topics(path):
        if query.query_id in queries:
            raise DataError(path, number, f"query id {query.query_id!r} comes twice; give every query its own")
        if not query.text:
            raise DataError(path, number, f"query {query.query_id!r} has no text; write it or remove the query")
        queries[query.query_id] = query.text
    return queries


def _iter_topics(path: StrPath) -> Iterator[tuple[int, Query]]:
    first_character = read_first_character(path)
    if first_character == "<":
        return _iter_tagged_topics(path)
    return _iter_json_topics(path) if first_character == "{" else _iter_tab_topics(path)


def _iter_tagged_topics(path: StrPath) -> Iterator[tuple[int, Query]]:
    text = "".join(f"{line}\n" for _, line in read_lines(path, blank=True))
    if not _TOP.search(text):
        raise DataError(path, 1, "the file starts with '<' but has no <top>; write <top><num>..<title>..</top>")
    for top in _TOP.finditer(text):
        number = text.count("\n", 0, top.start()) + 1
        query_id, title = _NUM.search(top[1]), _TITLE.search(top[1])
        if not top[2] or query_id is None or title is None:
            raise DataError(path, number, "a topic needs <num>, <title> and a closing </top>; add what is missing")
        yield number, Query(query_id[1], " ".join(html.unescape(title[1]).split()))


def _iter_tab_topics(path: StrPath) -> Iterator[tuple[int, Query]]:
    for number, line in read_lines(path):
        query_id, tab, text = line.partition("\t")
        if not tab or not normalize_id(query_id):
            raise DataError(path, number, "this line has no query id before a tab; write 'id<TAB>text'")
        yield number, Query(normalize_id(query_id), text.strip())


def _iter_json_topics(path: StrPath) -> Iterator[tuple[int, Query]]:
    for number, row in read_jsonl(path):
        query_id = get_json_id(path, number, row)
        yield number, Query(query_id, get_json_text(path, number, row, names=("text", "query")).strip())


# --- numbers and rows


# `int` and `float` also read 1_0, the digits of other scripts, "nan" and "infinity". A file that holds them is damaged.
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")


def _parse_grade(path: StrPath, number: int, text: str) -> int:
    grade = _parse_integer(path, number, name="grade", text=text)
    if abs(grade) > MAX_GRADE:
        problem = f"grade {text} is beyond {MAX_GRADE}, so it looks like an id"
        raise DataError(path, number, f"{problem}; put the columns in order, or use smaller grades")
    return grade


def _parse_integer(path: StrPath, number: int, *, name: str, text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise DataError(path, number, f"{name} {text!r} is not a whole number; write digits, such as 1")
    return int(text)


def _parse_number(path: StrPath, number: int, *, name: str, text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise DataError(path, number, f"{name} {text!r} is not a finite number; write one, such as 1.5")
    return value


def _write_rows(path: StrPath, rows: Iterable[Sequence[str]]) -> None:
    with open_for_replacement(Path(path)) as stream:
        for number, row in enumerate(rows, 1):
            for column in row:
                if not column or column.split() != [column]:
                    problem = f"{column!r} cannot stand in a TREC file, because whitespace separates its columns"
                    raise DataError(path, number, f"{problem}; rename it without spaces")
            stream.write(f"{' '.join(row)}\n".encode())
