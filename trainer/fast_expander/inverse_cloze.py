"""Training queries out of the texts of an index: inverse cloze (arXiv 1906.00300)."""

from __future__ import annotations

import random
import re

_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s*")
_WORD = re.compile(r"\w+")
_MAX_SENTENCE_WORDS = 40
_SPAN_WORDS = (3, 8)
"""The least and the greatest length of a span."""
_PICKED_WORDS = (2, 6)
"""The least and the greatest number of words that are picked from anywhere."""
_BEGINNING_WORDS = 12


def create_pseudo_queries(text: str, *, count: int, draw: random.Random) -> list[str]:
    """Return at most `count` queries out of a text, in random order.

    They are drawn from its beginning, two of its sentences, a span of words in a row, and some words from anywhere.
    """
    words = text.split()
    sentences = [
        sentence
        for sentence in _SENTENCE_END.split(text)
        if _SPAN_WORDS[0] <= len(sentence.split()) <= _MAX_SENTENCE_WORDS
    ]
    queries = [
        " ".join(words[:_BEGINNING_WORDS]),
        *draw.sample(sentences, min(2, len(sentences))),
        _pick_span(words, draw),
        _pick_words(text, draw),
    ]
    distinct_queries = [query for query in dict.fromkeys(queries) if query]
    draw.shuffle(distinct_queries)
    return distinct_queries[:count]


def _pick_span(words: list[str], draw: random.Random) -> str:
    count = draw.randint(*_SPAN_WORDS)
    start = draw.randint(0, max(0, len(words) - count))
    return " ".join(words[start : start + count])


def _pick_words(text: str, draw: random.Random) -> str:
    words = [word for word in _WORD.findall(text) if len(word) > 3]
    return " ".join(draw.sample(words, min(len(words), draw.randint(*_PICKED_WORDS))))
