"""Stream documents from JSONL files and from tagged TREC files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

from querylift.index_tools.corpora.json_rows import get_json_id, get_json_text, read_jsonl
from querylift.index_tools.corpora.records import Document, normalize_id
from querylift.plugin.errors import DataError
from querylift.plugin.text_files import read_first_character, read_lines

_DOCNO = re.compile(r"<docno>(.*?)</docno>", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<(title|headline|head|hl|ttl)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_TEXT = re.compile(r"<(text)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][^<>]*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)


def iter_documents_of_files(*paths: Path) -> Iterator[Document]:
    """Stream the documents of files. Raise DataError when an id comes twice.

    To notice that, all ids stay in memory, about 100 bytes for each.
    """
    seen_ids: set[str] = set()
    for path in paths:
        tagged = read_first_character(path) == "<"
        for number, document in _iter_tagged_documents(path) if tagged else _iter_json_documents(path):
            if document.doc_id in seen_ids:
                problem = f"document id {document.doc_id!r} comes twice"
                raise DataError(path, number, f"{problem}; give every document its own")
            seen_ids.add(document.doc_id)
            yield document


def _iter_json_documents(path: Path) -> Iterator[tuple[int, Document]]:
    for number, row in read_jsonl(path):
        title = get_json_text(path, number, row, names=("title",)) if row.get("title") is not None else ""
        text = get_json_text(path, number, row, names=("text", "contents"))
        yield number, Document(get_json_id(path, number, row), title, text)


def _iter_tagged_documents(path: Path) -> Iterator[tuple[int, Document]]:
    for number, body in _iter_tagged_bodies(path):
        docno = _DOCNO.search(body)
        doc_id = normalize_id(docno[1]) if docno else ""
        if not doc_id:
            raise DataError(path, number, "this <DOC> has no <DOCNO>; give every document an id")
        yield number, Document(doc_id, _extract_plain_text(_TITLE, body), _extract_plain_text(_TEXT, body))


def _iter_tagged_bodies(path: Path) -> Iterator[tuple[int, str]]:
    """Stream the text between `<DOC>` and `</DOC>`, each tag on its own line, with the line number of `<DOC>`."""
    start, lines = 0, list[str]()
    for number, line in read_lines(path, blank=True):
        tag = line.strip().lower()
        if tag == "<doc>" and not start:
            start, lines = number, []
        elif tag == "</doc>" and start:
            yield start, "\n".join(lines)
            start = 0
        elif start and tag != "<doc>":
            lines.append(line)
        elif tag:
            raise DataError(path, number, "this line is not between <DOC> and </DOC>; give each tag its own line")
    if start:
        raise DataError(path, start, "this <DOC> has no </DOC>; the file seems to be cut off")


def _extract_plain_text(pattern: re.Pattern[str], body: str) -> str:
    return "\n".join(unescape(_TAG.sub(" ", match[2])).strip() for match in pattern.finditer(body))
