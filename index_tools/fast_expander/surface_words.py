"""Words for terms: the commonest word of the texts that the analyzer makes one term of, and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import EngineError
from querylift.plugin.fast_expander.index_check import tokens_by_text

_WORD = re.compile(r"\w+")
_MAX_CHARS = 40
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]{5}")
"""A run of a script that is written without spaces is a sentence, not a word."""
_BATCH_WORDS, _BATCH_CHARS = 4000, 40_000
"""Of one `_analyze`: an index takes 10,000 tokens at a time unless it is told otherwise."""
_REMEMBERED = 1_000_000


class Surfaces:
    """Asks the engine's analyzer about each word once."""

    def __init__(self, engine: Engine, index: str, field: str) -> None:
        self._engine = engine
        self._index = index
        self._field = field
        self._known: dict[str, str] = {}

    def count(self, texts: Iterable[str]) -> dict[str, tuple[str, int]]:
        """By term: the word of `texts` that it is most often made of, in lower case, and how often."""
        counted = Counter(word for text in texts for word in _WORD.findall(text.lower()) if _may_be_one(word))
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        self._ask([word for word in counted if word not in self._known])
        found: dict[str, tuple[str, int]] = {}
        for word, count in counted.items():
            term = self._known[word]
            if term and (term not in found or (-count, word) < (-found[term][1], found[term][0])):
                found[term] = word, count
        return found

    def made_of(self, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The terms of each word."""
        made: dict[str, tuple[str, ...]] = {}
        for batch in _batches(words):
            made |= self._made_of(batch)
        return made

    def _made_of(self, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
        try:
            body = {"field": self._field, "text": list(words)}
            tokens = self._engine.call("POST", f"/{self._index}/_analyze", body)["tokens"]
        except EngineError as error:  # an analyzer that makes n-grams gives many tokens for a word
            if "max_token_count" not in str(error) or len(words) < 2:
                raise
            half = len(words) // 2
            return self._made_of(words[:half]) | self._made_of(words[half:])
        return tokens_by_text(words, tokens)

    def _ask(self, words: Sequence[str]) -> None:
        for word, terms in self.made_of(words).items():
            self._known[word] = terms[0] if len(terms) == 1 else ""


def _may_be_one(word: str) -> bool:
    return len(word) <= _MAX_CHARS and not _UNSPACED.search(word)


def _batches(words: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for word in words:
        if batch and (len(batch) == _BATCH_WORDS or chars + len(word) > _BATCH_CHARS):
            yield batch
            batch, chars = [], 0
        batch.append(word)
        chars += len(word)
    if batch:
        yield batch
