"""Match texts with held-out texts that are the same: by id, by text, or nearly.

Two texts are near-duplicates when the Jaccard similarity (Jaccard 1912) of their sets of words, or of their sets of character
4-grams, reaches a threshold. Words match across another word order, 4-grams across another inflection. Question words are left
out of the word sets; otherwise "what is the capital of France" would match the same question about Spain.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

NEAR_DUPLICATE_THRESHOLD = 0.6
"""Chosen on scifact and nfcorpus. Below 0.6, pairs only share a topic; from 0.6 to 0.7, most pairs negate one claim."""
SAME_ID_THRESHOLD = 0.3
"""For pairs with the same id when the corpora may differ. Ids such as 1, 2, 3 exist in every corpus."""
NGRAM_CHARS = 4

_WORD = re.compile(r"[^\W_]+")
_QUESTION_WORDS = frozenset(
    "a an and are at be by can could did do does for from has have how i in is it of on or should that the there to was were "
    "what when where which who why will with would you your".split()
)
_UNSPACED_SCRIPT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


class IdentifiedText(NamedTuple):
    """A text, its id, and the corpus that the id is of. An id or a corpus that is not known is empty.

    An id may also name its corpus itself ("fiqa:9188").
    """

    corpus: str
    text_id: str
    text: str


Position: TypeAlias = "tuple[int, int]"
"""A pair: the position of a training text, and the position of a held-out text."""


def find_text_matches(
    training: Sequence[IdentifiedText],
    held_out: Sequence[IdentifiedText],
    *,
    threshold: float = NEAR_DUPLICATE_THRESHOLD,
) -> dict[Position, str]:
    """Return why a training text and a held-out text are the same, as `TextMatcher.find_matches` does."""
    return TextMatcher(held_out, threshold=threshold).find_matches(training)


class TextMatcher:
    """Matches texts with the same held-out texts again and again. The held-out texts are prepared once."""

    def __init__(self, held_out: Sequence[IdentifiedText], *, threshold: float = NEAR_DUPLICATE_THRESHOLD) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is {threshold}; use a number above 0 and at most 1")
        texts = [normalise_text(text.text) for text in held_out]
        self._texts = texts
        self._full_ids = _list_positions([f"{text.corpus}:{text.text_id}" for text in held_out])
        self._ids = _list_positions([text.text_id for text in held_out])
        self._equal_texts = _list_positions(texts)
        self._near_duplicates = [
            _NearDuplicates(texts, extract_features, threshold)
            for extract_features in (_extract_words, _extract_character_ngrams)
        ]

    def find_matches(self, training: Sequence[IdentifiedText]) -> dict[Position, str]:
        """Return why a training text and a held-out text are the same, for every such pair, in the order of `training`.

        The same id alone is a match when both ids are of one corpus. When the corpora may differ, the same id is a match
        from a similarity of `SAME_ID_THRESHOLD`. All texts are compared, without letter case, punctuation and white space.
        """
        texts = [normalise_text(text.text) for text in training]
        reasons: dict[Position, str] = {}
        for position in _match_keys([_list_full_ids(text) for text in training], self._full_ids):
            reasons[position] = "the same id"
        for position in _match_keys([[text] for text in texts], self._equal_texts):
            reasons.setdefault(position, "the same text")
        for near_duplicates in self._near_duplicates:
            for position, similarity in near_duplicates.find(texts):
                reasons.setdefault(position, f"{similarity:.0%} alike")
        for position in _match_keys([[text.text_id] for text in training], self._ids):
            similarity = _compute_similarity(texts[position[0]], self._texts[position[1]])
            if similarity >= SAME_ID_THRESHOLD:
                reasons.setdefault(position, f"the same id, {similarity:.0%} alike")
        return {position: reasons[position] for position in sorted(reasons)}


def normalise_text(text: str) -> str:
    """Return `text` in lower case and without punctuation, with one space between words."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def _list_positions(keys: Iterable[str]) -> Mapping[str, Sequence[int]]:
    """Return the positions of each key. Empty keys have none."""
    positions: dict[str, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        if key:
            positions[key].append(position)
    return positions


def _list_full_ids(text: IdentifiedText) -> list[str]:
    """Return the ids that name their corpus: the id may name it itself."""
    return [f"{text.corpus}:{text.text_id}", text.text_id] if text.text_id else []


def _match_keys(training: Sequence[Sequence[str]], held_out: Mapping[str, Sequence[int]]) -> Iterator[Position]:
    """Yield the positions of training texts and held-out texts with the same key."""
    for training_position, keys in enumerate(training):
        for key in keys:
            for held_out_position in held_out.get(key, ()):
                yield training_position, held_out_position


def _extract_words(text: str) -> frozenset[str]:
    """Return the words of a text without question words. Chinese and Japanese have no spaces and count by character bigrams."""
    words = text.split()
    content_words = [word for word in words if word not in _QUESTION_WORDS] or words
    return frozenset(part for word in content_words for part in _split_unspaced_word(word))


def _split_unspaced_word(word: str) -> list[str]:
    """Return the character bigrams of a Chinese or Japanese word, and any other word whole."""
    if len(word) < 3 or not _UNSPACED_SCRIPT.fullmatch(word):
        return [word]
    return [word[start : start + 2] for start in range(len(word) - 1)]


def _extract_character_ngrams(text: str) -> frozenset[str]:
    if not text:
        return frozenset()
    padded = f" {text} "
    return frozenset(padded[i : i + NGRAM_CHARS] for i in range(max(1, len(padded) - NGRAM_CHARS + 1)))


class _NearDuplicates:
    """Held-out texts by their rare features, for prefix filtering (Chaudhuri et al., ICDE 2006).

    Two sets whose similarity reaches the threshold share one of their rarest features. Only texts that share a rare feature
    are compared.
    """

    def __init__(
        self, held_out: Sequence[str], extract_features: Callable[[str], frozenset[str]], threshold: float
    ) -> None:
        self._extract_features, self._threshold = extract_features, threshold
        self._held_out = [extract_features(text) for text in held_out]
        self._counts = Counter(feature for features in self._held_out for feature in features)
        self._positions: dict[str, list[int]] = defaultdict(list)
        for position, features in enumerate(self._held_out):
            for feature in self._select_rarest(features):
                self._positions[feature].append(position)

    def find(self, training: Sequence[str]) -> Iterator[tuple[Position, float]]:
        """Yield the pairs whose similarity reaches the threshold."""
        for training_position, text in enumerate(training):
            features = self._extract_features(text)
            rarest = self._select_rarest(features)
            for held_out_position in {position for feature in rarest for position in self._positions.get(feature, ())}:
                similarity = _compute_jaccard(features, self._held_out[held_out_position])
                if similarity >= self._threshold:
                    yield (training_position, held_out_position), similarity

    def _select_rarest(self, features: frozenset[str]) -> Iterable[str]:
        """Return the rarest features of a set. Two sets that are alike enough share at least one of them."""
        if not features:
            return ()
        count = len(features) - math.ceil(self._threshold * len(features) - 1e-9) + 1
        return sorted(features, key=lambda feature: (self._counts[feature], feature))[:count]


def _compute_similarity(text: str, other_text: str) -> float:
    """Return the larger of the two similarities, by words and by character n-grams."""
    return max(
        _compute_jaccard(extract_features(text), extract_features(other_text))
        for extract_features in (_extract_words, _extract_character_ngrams)
    )


def _compute_jaccard(features: frozenset[str], other_features: frozenset[str]) -> float:
    """Return the size of the intersection over the size of the union; 0 when nothing is shared."""
    shared = len(features & other_features)
    return shared / (len(features) + len(other_features) - shared) if shared else 0.0
