"""Surface words: for each term, the commonest word of the texts that the analyzer turns into this term and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import EngineError
from querylift.plugin.fast_expander.index_check import group_terms_by_text

_WORD = re.compile(r"\w+")
_MAX_WORD_CHARS = 40
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]{5}")
"""Five characters of a script that is written without spaces. They are a piece of a sentence, and no word."""
_BATCH_WORDS, _BATCH_CHARS = 4000, 40_000
"""The size of one `_analyze` request. By default an index takes at most 10,000 tokens at a time."""
_MAX_CACHED_WORDS = 1_000_000


class SurfaceWords:
    """Finds the surface words of terms. It asks the engine's analyzer about each word only once."""

    def __init__(self, engine: Engine, index: str, field: str) -> None:
        self._engine = engine
        self._index = index
        self._field = field
        self._term_of: dict[str, str] = {}
        """Word to its term, and to "" when the analyzer makes none or several of it."""

    def find_commonest_words(self, texts: Iterable[str]) -> dict[str, tuple[str, int]]:
        """Return, by term, its commonest word in `texts` in lower case, and the count of that word."""
        counts = Counter(word for text in texts for word in _WORD.findall(text.lower()) if _can_be_word(word))
        if len(self._term_of) > _MAX_CACHED_WORDS:
            self._term_of.clear()
        new_words = [word for word in counts if word not in self._term_of]
        for word, terms in self.analyze_words(new_words).items():
            self._term_of[word] = terms[0] if len(terms) == 1 else ""
        commonest: dict[str, tuple[str, int]] = {}
        for word, count in counts.items():
            term = self._term_of[word]
            if term and (term not in commonest or (-count, word) < (-commonest[term][1], commonest[term][0])):
                commonest[term] = word, count
        return commonest

    def analyze_words(self, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the terms that the analyzer makes of each word."""
        terms: dict[str, tuple[str, ...]] = {}
        for batch in _split_batches(words):
            terms |= self._analyze_batch(batch)
        return terms

    def _analyze_batch(self, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
        try:
            body = {"field": self._field, "text": list(words)}
            tokens = self._engine.call("POST", f"/{self._index}/_analyze", body)["tokens"]
        except EngineError as error:  # An analyzer that makes n-grams gives many tokens for a word.
            if "max_token_count" not in str(error) or len(words) < 2:
                raise
            half = len(words) // 2
            return self._analyze_batch(words[:half]) | self._analyze_batch(words[half:])
        return group_terms_by_text(words, tokens)


def _can_be_word(text: str) -> bool:
    return len(text) <= _MAX_WORD_CHARS and not _UNSPACED.search(text)


def _split_batches(words: Sequence[str]) -> Iterator[list[str]]:
    """Split words into batches of at most `_BATCH_WORDS` words and about `_BATCH_CHARS` characters."""
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
