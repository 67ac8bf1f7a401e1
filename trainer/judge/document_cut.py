"""Cut documents to the length at which they are graded."""

from __future__ import annotations

import re
from itertools import islice

DEFAULT_MAX_WORDS = 150
MAX_CHARS_PER_WORD = 10
"""A text of N words has at most 10 N characters. This bounds texts in scripts that put no spaces between words."""
_WORD = re.compile(r"\S+")


def cut_document(text: str, max_words: int) -> str:
    """Return the first `max_words` words of a text, on one line, and at most `MAX_CHARS_PER_WORD` times as many characters."""
    words = " ".join(match[0] for match in islice(_WORD.finditer(text), max_words))
    return words[: max_words * MAX_CHARS_PER_WORD].rstrip()
