"""Which terms of an index are worth adding to a query."""

from __future__ import annotations

MAX_DOCUMENT_SHARE = 0.1
"""A term in more of the index than this says nothing about a query."""
_MIN_TERM_CHARS = 2


def is_usable(term: str) -> bool:
    """Whether `term` may be a word: neither a single character nor a number."""
    return len(term) >= _MIN_TERM_CHARS and not term.isdigit()


def most_documents(documents: int) -> float:
    """In how many of so many `documents` a term may be."""
    return max(MAX_DOCUMENT_SHARE * documents, 1)
