"""Queries, judgments and runs: the records, and the files that the field exchanges them in.

Every reader takes UTF-8 text, `.gz` included, skips blank lines and keeps the order of the file. What it cannot use
raises DataError with path and line; a file that cannot be opened raises SettingsError. Every writer replaces the file
at once, or leaves the old one as it was.
"""

from __future__ import annotations

import gzip
import html
import io
import json
import math
import os
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from querylift.plugin.errors import DataError, SettingsError

StrPath: TypeAlias = "str | os.PathLike[str]"
Queries: TypeAlias = "dict[str, str]"
"""Query text by query id."""
Qrels: TypeAlias = "dict[str, dict[str, int]]"
"""Grade by query id and document id."""
Run: TypeAlias = "dict[str, list[str]]"
"""Document ids, best first, by query id."""


class Query(NamedTuple):
    """What a user asks for."""

    query_id: str
    text: str


class Document(NamedTuple):
    """What can be found. `title` and `text` may be empty."""

    doc_id: str
    title: str
    text: str


class Qrel(NamedTuple):
    """A judgment: how well a document answers a query. 0 and below is not at all."""

    query_id: str
    doc_id: str
    relevance: int


class ScoredDoc(NamedTuple):
    """A document that a system returned for a query; a higher score is better."""

    query_id: str
    doc_id: str
    score: float


# --- judgments

_HEADERS = ("score", "relevance", "grade", "label")
"""How BEIR files and their kin head the third column."""


def read_qrels(path: StrPath) -> Qrels:
    """Read judgments in TREC form (`query 0 document grade`) or BEIR form (three tab-separated columns, header or not).

    The same judgment twice counts once; two different grades for one document are refused.
    """
    qrels: Qrels = {}
    for number, qrel in iter_qrels(path):
        grades = qrels.setdefault(qrel.query_id, {})
        if grades.setdefault(qrel.doc_id, qrel.relevance) != qrel.relevance:
            problem = f"document {qrel.doc_id!r} already has grade {grades[qrel.doc_id]} for query {qrel.query_id!r}"
            raise DataError(path, number, f"{problem}; keep one of the two lines")
    return qrels


def iter_qrels(path: StrPath) -> Iterator[tuple[int, Qrel]]:
    """Stream judgments as they stand in the file, each with its line number."""
    lines = read_lines(path)
    for first, line in lines:
        beir = line.count("\t") == 2
        if not (beir and line.split("\t")[2].strip().lower() in _HEADERS):
            yield first, _qrel(path, first, line=line, beir=beir)
        yield from ((number, _qrel(path, number, line=line, beir=beir)) for number, line in lines)


def _qrel(path: StrPath, number: int, *, line: str, beir: bool) -> Qrel:
    columns = line.split("\t") if beir else line.split()
    if len(columns) != (3 if beir else 4):
        wanted = "query<TAB>document<TAB>grade" if beir else "query 0 document grade"
        raise DataError(path, number, f"{len(columns)} columns in a judgment; write '{wanted}', as the first line does")
    query_id, doc_id = columns[0].strip(), columns[-2].strip()
    if not query_id or not doc_id:
        raise DataError(path, number, "an id of this judgment is empty; give both the query and the document")
    return Qrel(query_id, doc_id, _whole(path, number, what="grade", text=columns[-1]))


def write_qrels(path: StrPath, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write judgments in TREC form. A query without any leaves no line; an id with whitespace raises DataError."""
    rows = (
        (query_id, "0", doc_id, str(grade)) for query_id, grades in qrels.items() for doc_id, grade in grades.items()
    )
    _write_rows(path, rows)


# --- runs


def read_run(path: StrPath) -> Run:
    """Read a six-column TREC run, each query's documents by falling score, equal scores by rising rank.

    The score decides because trec_eval and its kin read no rank; the rank only settles what a score leaves open.
    """
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    for number, rank, scored in _iter_run(path):
        found = rows.setdefault(scored.query_id, {})
        if scored.doc_id in found:
            problem = f"document {scored.doc_id!r} is already in the run for query {scored.query_id!r}"
            raise DataError(path, number, f"{problem}; keep one of the two lines")
        found[scored.doc_id] = (-scored.score, rank)
    return {query_id: sorted(found, key=found.__getitem__) for query_id, found in rows.items()}


def _iter_run(path: StrPath) -> Iterator[tuple[int, int, ScoredDoc]]:
    for number, line in read_lines(path):
        columns = line.split()
        if len(columns) != 6:
            problem = f"{len(columns)} columns in a line of a run"
            raise DataError(path, number, f"{problem}; write 'query Q0 document rank score tag', ids without spaces")
        query_id, _, doc_id, rank, score, _ = columns
        scored = ScoredDoc(query_id, doc_id, _real(path, number, what="score", text=score))
        yield number, _whole(path, number, what="rank", text=rank), scored


def write_run(path: StrPath, run: Mapping[str, Sequence[str]], tag: str) -> None:
    """Write a TREC run whose scores fall by one per rank down to 1, so that every tool reproduces the order.

    A query without documents leaves no line. A document that comes twice, or whitespace in an id, raises DataError.
    """
    _write_rows(path, (row for query_id, doc_ids in run.items() for row in _run_rows(path, query_id, doc_ids, tag=tag)))


def _run_rows(path: StrPath, query_id: str, doc_ids: Sequence[str], *, tag: str) -> Iterator[tuple[str, ...]]:
    seen: set[str] = set()
    for place, doc_id in enumerate(doc_ids):
        if doc_id in seen:
            raise DataError(path, place + 1, f"document {doc_id!r} comes twice for query {query_id!r}; list it once")
        seen.add(doc_id)
        yield query_id, "Q0", doc_id, str(place + 1), str(len(doc_ids) - place), tag


# --- queries

_TOP = re.compile(r"<top>(.*?)(</top>|(?=<top>)|\Z)", re.DOTALL | re.IGNORECASE)
_NUM = re.compile(r"<num>\s*(?:Number:)?\s*([^\s<]+)", re.IGNORECASE)
_TITLE = re.compile(r"<title>\s*(?:Topic:)?(.*?)(?=</?[a-z]|\Z)", re.DOTALL | re.IGNORECASE)


def read_topics(path: StrPath) -> Queries:
    """Read queries from TREC topics (`<top>` with `<num>` and `<title>`), from `id<TAB>text`, or from JSONL.

    The first character tells the form: `<`, `{`, or another. A JSONL line has `_id` (or `id`) and `text`. An id that
    comes twice and a query without text are refused.
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
    first = first_character(path)
    if first == "<":
        return _iter_tagged_topics(path)
    return _iter_json_topics(path) if first == "{" else _iter_tab_topics(path)


def _iter_tagged_topics(path: StrPath) -> Iterator[tuple[int, Query]]:
    text = "".join(f"{line}\n" for _, line in read_lines(path, blank=True))
    if not _TOP.search(text):
        raise DataError(path, 1, "no <top> in a topics file that starts with '<'; write <top><num>..<title>..</top>")
    for top in _TOP.finditer(text):
        number = text.count("\n", 0, top.start()) + 1
        query_id, title = _NUM.search(top[1]), _TITLE.search(top[1])
        if not top[2] or query_id is None or title is None:
            raise DataError(path, number, "a topic needs <num>, <title> and a closing </top>; add what is missing")
        yield number, Query(query_id[1], " ".join(html.unescape(title[1]).split()))


def _iter_tab_topics(path: StrPath) -> Iterator[tuple[int, Query]]:
    for number, line in read_lines(path):
        query_id, tab, text = line.partition("\t")
        if not tab or not query_id.strip():
            raise DataError(path, number, "no query id before a tab; write 'id<TAB>text'")
        yield number, Query(query_id.strip(), text.strip())


def _iter_json_topics(path: StrPath) -> Iterator[tuple[int, Query]]:
    for number, row in read_jsonl(path):
        query_id = json_id(path, number, row)
        yield number, Query(query_id, json_text(path, number, row, names=("text", "query")).strip())


# --- what the readers share, with corpora.py too


def read_lines(path: StrPath, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Stream the lines of a UTF-8 file with their numbers, from 1, without line ends; blank ones only where asked for.

    Only a line feed ends a line: JSON may hold the other characters that Python's `splitlines` would cut at.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, raw in enumerate(stream, 1):
                line = raw.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode().rstrip("\r\n")
                if blank or line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: {error.reason} at byte {error.start + 1} of the line"
        raise DataError(path, number, f"{problem}; convert the file, for example with iconv") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(path, number + 1, f"the gzip file is broken ({error}); copy or compress it again") from error


def _open(path: StrPath) -> io.BufferedIOBase:
    try:
        return gzip.open(path) if os.fspath(path).endswith(".gz") else Path(path).open("rb")
    except OSError as error:
        raise SettingsError(f"cannot read {os.fspath(path)!r}: {error.strerror}; name a file that exists") from error


def first_character(path: StrPath) -> str:
    """Return the first character of a file that is not whitespace, or '' where there is none."""
    return next((line.strip()[0] for _, line in read_lines(path)), "")


def read_jsonl(path: StrPath) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream the objects of a JSONL file with their line numbers."""
    for number, line in read_lines(path):
        row = _json(path, number, line=line)
        if not isinstance(row, dict):
            raise DataError(path, number, f"a JSON {type(row).__name__}, not an object; write {{...}} on every line")
        yield number, row


def _json(path: StrPath, number: int, *, line: str) -> object:
    try:
        row: object = json.loads(line)
        if "\\ud" in line.lower():
            # Half a surrogate pair is JSON, but no engine takes it and no file can hold it.
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(path, number, "half a surrogate pair in the JSON; remove the lone \\ud... escape") from error
    except json.JSONDecodeError as error:
        raise DataError(path, number, f"not JSON: {error.msg} at column {error.colno}; write one object") from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, number, f"JSON that Python cannot hold: {error}; write a smaller value") from error
    return row


def json_id(path: StrPath, number: int, row: Mapping[str, Any]) -> str:
    """Return `_id` (or `id`) of a JSONL row, a whole number as text. Empty, missing and other types raise DataError."""
    value = row.get("_id", row.get("id"))
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip():
        raise DataError(path, number, f"'_id' is {_seen(value)}; give every line its own text or number")
    return text


def json_text(path: StrPath, number: int, row: Mapping[str, Any], *, names: Sequence[str]) -> str:
    """Return the first of the fields `names` that a JSONL row has. Missing and other types raise DataError."""
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str):
        raise DataError(path, number, f"{names[0]!r} is {_seen(value)}; write it as a text, which may be empty")
    return value


def _seen(value: object) -> str:
    if value is None:
        return "missing"
    return "empty" if isinstance(value, str) else f"a {type(value).__name__}"


def _whole(path: StrPath, number: int, *, what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DataError(path, number, f"{what} {text!r} is not a whole number; write one") from error


def _real(path: StrPath, number: int, *, what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise DataError(path, number, f"{what} {text!r} is not a number; write one") from error
    if math.isnan(value):
        raise DataError(path, number, f"{what} {text!r} orders nothing; write a number")
    return value


def _write_rows(path: StrPath, rows: Iterable[Sequence[str]]) -> None:
    with replacing(path) as stream:
        for number, row in enumerate(rows, 1):
            for field in row:
                if not field or field.split() != [field]:
                    problem = f"{field!r} cannot stand in a TREC file, whose columns are cut at whitespace"
                    raise DataError(path, number, f"{problem}; rename it without spaces")
            stream.write(f"{' '.join(row)}\n".encode())


@contextmanager
def replacing(path: StrPath) -> Iterator[io.BufferedIOBase]:
    """Give a stream whose bytes become the file at `path`, gzipped where that ends in `.gz`, when the block ends well.

    Raises SettingsError where the folder takes no file.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _create(temporary) as plain, _compressed(plain, target) as stream:
            yield stream
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _create(path: Path) -> io.BufferedIOBase:
    try:
        return path.open("xb")
    except OSError as error:
        raise SettingsError(f"cannot write in {str(path.parent)!r}: {error.strerror}; name another folder") from error


@contextmanager
def _compressed(plain: io.BufferedIOBase, target: Path) -> Iterator[io.BufferedIOBase]:
    if target.suffix != ".gz":
        yield plain
        return
    # No name and no time in the header: the same rows make the same bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=plain, mtime=0) as stream:
        yield stream
