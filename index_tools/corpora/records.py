"""The records and the mappings in which the field describes queries, documents, judgments and runs."""

from __future__ import annotations

import os
from typing import NamedTuple, TypeAlias

StrPath: TypeAlias = "str | os.PathLike[str]"
Queries: TypeAlias = "dict[str, str]"
"""The text of each query, by query id."""
Qrels: TypeAlias = "dict[str, dict[str, int]]"
"""The grade of each judged document, by query id and document id."""
Run: TypeAlias = "dict[str, list[str]]"
"""The document ids that each query found, best first, by query id."""


class Query(NamedTuple):
    """A query and its id."""

    query_id: str
    text: str


class Document(NamedTuple):
    """A document and its id. `title` and `text` may be empty."""

    doc_id: str
    title: str
    text: str


class Qrel(NamedTuple):
    """A judgment: the grade of one document for one query. A grade of 0 or less means not relevant."""

    query_id: str
    doc_id: str
    relevance: int


class ScoredDoc(NamedTuple):
    """A document that a system returned for a query. A higher score is better."""

    query_id: str
    doc_id: str
    score: float
