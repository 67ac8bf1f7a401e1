"""Candidates: expansions that a teacher or the student wrote for a query.

A file of candidates holds one JSON object a line, in the shape in which published expansions come:
{"query_id", "query", "method", "params", "model", "text"}. A text that did not end also has {"ended": false}. A candidate that
was made from a document also has "document", an object with "corpus" and "doc_id". Lines are only ever appended.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from querylift.index_tools.corpora.json_rows import get_json_id, read_jsonl
from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.files import compute_json_digest

_BLOCK_BYTES = 65536


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """The document that a candidate was made from. `corpus` is the name of its corpus, or "" when that is not known."""

    corpus: str
    doc_id: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One expansion of one query.

    `method` and `params` say how the model was asked. `params["sample"]` numbers several answers to the same prompt.
    `text` is the model's answer; `querylift.plugin.expansion` decides how much of it is served. `ended` is False when the
    model stopped at its token limit, or when the text is only the beginning of a document. A student is not taught to stop
    after such a text. `document` is None when the candidate was not made from a document, or when nobody recorded it.
    """

    query_id: str
    query: str
    method: str
    model: str
    text: str
    params: Mapping[str, Any] = field(default_factory=dict)
    ended: bool = True
    document: SourceDocument | None = None

    @property
    def request_key(self) -> str:
        """A digest of everything but the text, its end and the document: two answers to one request have the same key."""
        request = [self.query_id, self.query, self.method, self.model, dict(self.params)]
        return compute_json_digest(request)[:24]

    @property
    def request_seed(self) -> int:
        """A seed that differs between requests. With one fixed seed, a server would repeat the same sample."""
        return int(hashlib.sha256(self.request_key.encode()).hexdigest()[:7], 16)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `read_candidates` reads back."""
        return {
            "query_id": self.query_id,
            "query": self.query,
            "method": self.method,
            "params": dict(self.params),
            "model": self.model,
            "text": self.text,
            **({} if self.ended else {"ended": False}),
            **({"document": asdict(self.document)} if self.document else {}),
        }


def read_candidates(path: Path) -> Iterator[Candidate]:
    """Read the candidates of a file, which may be gzipped.

    Raises DataError with path and line for a broken line, and SettingsError when the file cannot be read.
    """
    for line_number, row in read_jsonl(path):
        yield parse_candidate(row, path, line_number)


def parse_candidate(row: Mapping[str, Any], path: Path, line_number: int) -> Candidate:
    """Return the candidate that a row holds. A number as the id of the query becomes text. Raises DataError."""
    query_id = get_json_id(path, line_number, row, names=("query_id",))
    texts = {name: row.get(name) for name in ("query", "text")}
    for name, value in texts.items():
        if not isinstance(value, str) or (name != "text" and not value.strip()):
            raise DataError(path, line_number, f"{name!r} is {value!r}; write it as a text")
    params = row.get("params") or {}
    if not isinstance(params, Mapping):
        raise DataError(path, line_number, f"'params' is {params!r}; write an object, or leave it out")
    ended = row.get("ended", True)
    if not isinstance(ended, bool):
        raise DataError(path, line_number, f"'ended' is {ended!r}; write true or false, or leave it out")
    return Candidate(
        query_id=query_id,
        query=str(texts["query"]),
        method=str(row.get("method") or "imported"),
        model=str(row.get("model") or "unknown"),
        text=str(texts["text"]),
        params=dict(params),
        ended=ended,
        document=find_source_document(row),
    )


def find_source_document(row: Mapping[str, Any]) -> SourceDocument | None:
    """Return the document that a row of candidates was made from. None when the row names none.

    An older row has only `params["doc_id"]`, which does not tell the corpus.
    """
    document, params = row.get("document"), row.get("params")
    if isinstance(document, Mapping) and document.get("doc_id"):
        return SourceDocument(str(document.get("corpus") or ""), str(document["doc_id"]))
    if isinstance(params, Mapping) and params.get("doc_id"):
        return SourceDocument("", str(params["doc_id"]))
    return None


class JsonLinesAppender:
    """Appends JSON objects to a file, and flushes after each line.

    A killed run may leave an incomplete last line. Opening the file removes it.
    Raises SettingsError when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("a+b")
        except OSError as error:
            raise SettingsError(f"{path} cannot be written ({error.strerror}); name another file") from None
        self._remove_incomplete_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()

    def _remove_incomplete_line(self) -> None:
        """Truncate the file after its last newline. The file is read backwards, one block at a time."""
        size = self._stream.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            block_start = max(0, end - _BLOCK_BYTES)
            self._stream.seek(block_start)
            newline = self._stream.read(end - block_start).rfind(b"\n")
            if newline >= 0:
                end = block_start + newline + 1
                break
            end = block_start
        if end < size:
            self._stream.truncate(end)
