"""Cut documents to the length at which they are graded."""

from __future__ import annotations

from querylift.plugin.words import take_first_words

DEFAULT_MAX_WORDS = 150
MAX_CHARS_PER_WORD = 10
"""A text of N words has at most 10 N characters. This bounds texts whose words are very long, such as encoded data."""


def cut_document(text: str, max_words: int) -> str:
    """Return the first `max_words` words of a text, on one line, and at most `MAX_CHARS_PER_WORD` times as many characters.

    `querylift.plugin.words` says what counts as a word.
    """
    return take_first_words(text, max_words)[: max_words * MAX_CHARS_PER_WORD].rstrip()
