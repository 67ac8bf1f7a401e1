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

MAX_GRADE = 1000
"""Grades lie between -MAX_GRADE and MAX_GRADE. A larger number is usually an id, and trec_eval takes memory for each grade."""


def normalize_id(text: str) -> str:
    """Return an id as it is compared: without white space around it.

    Every reader of documents, queries, judgments and runs calls this. TREC files cannot hold white space at an end of an id,
    so a corpus or an index that has some would match none of its judgments.
    """
    return text.strip()


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
