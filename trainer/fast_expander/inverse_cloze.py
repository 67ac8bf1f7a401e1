"""Training queries out of the texts of an index: inverse cloze (arXiv 1906.00300)."""

from __future__ import annotations

import random
import re

from querylift.plugin.words import count_words, find_word_spans, is_unspaced, take_first_words

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
    `querylift.plugin.words` says what counts as a word.
    """
    sentences = [
        sentence
        for sentence in _SENTENCE_END.split(text)
        if _SPAN_WORDS[0] <= count_words(sentence) <= _MAX_SENTENCE_WORDS
    ]
    queries = [
        take_first_words(text, _BEGINNING_WORDS),
        *draw.sample(sentences, min(2, len(sentences))),
        _pick_span(text, draw),
        _pick_words(text, draw),
    ]
    distinct_queries = [query for query in dict.fromkeys(queries) if query]
    draw.shuffle(distinct_queries)
    return distinct_queries[:count]


def _pick_span(text: str, draw: random.Random) -> str:
    spans = list(find_word_spans(text))
    count = draw.randint(*_SPAN_WORDS)
    first = draw.randint(0, max(0, len(spans) - count))
    chosen = spans[first : first + count]
    return " ".join(text[chosen[0][0] : chosen[-1][1]].split()) if chosen else ""


def _pick_words(text: str, draw: random.Random) -> str:
    words = [word for run in _WORD.findall(text) for word in _split_run(run) if len(word) > 3 or is_unspaced(word)]
    return " ".join(draw.sample(words, min(len(words), draw.randint(*_PICKED_WORDS))))


def _split_run(run: str) -> list[str]:
    return [run[start:end] for start, end in find_word_spans(run)]
