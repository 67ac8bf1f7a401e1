"""Decides which terms of an index are worth adding to a query."""

from __future__ import annotations

MAX_DOCUMENT_SHARE = 0.1
"""A term in a larger share of the documents is too common to add."""
_MIN_TERM_CHARS = 2


def is_usable_term(term: str) -> bool:
    """Whether `term` may be a word, which a single character and a number are not."""
    return len(term) >= _MIN_TERM_CHARS and not term.isdigit()


def compute_document_limit(documents: int) -> float:
    """Return how many documents may contain a usable term, for an index of `documents`. At least 1."""
    return max(MAX_DOCUMENT_SHARE * documents, 1)
