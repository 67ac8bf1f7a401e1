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
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Return why a training text and a held-out text are the same, for every such pair, in the order of `training`.

    The same id alone is a match when both ids are of one corpus. When the corpora may differ, the same id is a match from a
    similarity of `SAME_ID_THRESHOLD`. All texts are compared, without letter case, punctuation and white space.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; use a number above 0 and at most 1")
    training_texts = [normalise_text(text.text) for text in training]
    held_out_texts = [normalise_text(text.text) for text in held_out]
    reasons: dict[Position, str] = {}
    for position in _match_ids_of_same_corpus(training, held_out):
        reasons[position] = "the same id"
    for position in _match_equal_texts(training_texts, held_out_texts):
        reasons.setdefault(position, "the same text")
    for extract_features in (_extract_words, _extract_character_ngrams):
        training_features = [extract_features(text) for text in training_texts]
        held_out_features = [extract_features(text) for text in held_out_texts]
        for position, similarity in _find_near_duplicates(training_features, held_out_features, threshold):
            reasons.setdefault(position, f"{similarity:.0%} alike")
    for position in _match_equal_texts([text.text_id for text in training], [text.text_id for text in held_out]):
        similarity = _compute_similarity(training_texts[position[0]], held_out_texts[position[1]])
        if similarity >= SAME_ID_THRESHOLD:
            reasons.setdefault(position, f"the same id, {similarity:.0%} alike")
    return {position: reasons[position] for position in sorted(reasons)}


def normalise_text(text: str) -> str:
    """Return `text` in lower case and without punctuation, with one space between words."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def _match_ids_of_same_corpus(
    training: Sequence[IdentifiedText], held_out: Sequence[IdentifiedText]
) -> Iterator[Position]:
    """Yield the positions of texts whose ids are the same and of one corpus."""
    positions = defaultdict(list)
    for position, text in enumerate(held_out):
        positions[f"{text.corpus}:{text.text_id}"].append(position)
    for training_position, text in enumerate(training):
        for full_id in (f"{text.corpus}:{text.text_id}", text.text_id) if text.text_id else ():
            for held_out_position in positions.get(full_id, ()):
                yield training_position, held_out_position


def _match_equal_texts(training: Sequence[str], held_out: Sequence[str]) -> Iterator[Position]:
    """Return the positions of equal texts. Empty texts match nothing."""
    positions = defaultdict(list)
    for position, text in enumerate(held_out):
        positions[text].append(position)
    for training_position, text in enumerate(training):
        for held_out_position in positions.get(text, ()) if text else ():
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


def _find_near_duplicates(
    training: Sequence[frozenset[str]], held_out: Sequence[frozenset[str]], threshold: float
) -> Iterator[tuple[Position, float]]:
    """Return the pairs whose similarity reaches the threshold, by prefix filtering (Chaudhuri et al., ICDE 2006).

    Two such sets share one of their rarest features. Only texts that share a rare feature are compared.
    """
    counts = Counter(feature for features in held_out for feature in features)

    def compute_rarity(feature: str) -> tuple[int, str]:
        return counts[feature], feature

    positions = defaultdict(list)
    for position, features in enumerate(held_out):
        for feature in _select_rarest(features, compute_rarity, threshold):
            positions[feature].append(position)
    for training_position, features in enumerate(training):
        rarest = _select_rarest(features, compute_rarity, threshold)
        for held_out_position in {position for feature in rarest for position in positions.get(feature, ())}:
            similarity = _compute_jaccard(features, held_out[held_out_position])
            if similarity >= threshold:
                yield (training_position, held_out_position), similarity


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


def _select_rarest(
    features: frozenset[str], compute_rarity: Callable[[str], tuple[int, str]], threshold: float
) -> Iterable[str]:
    """Return the rarest features of a set. Two sets whose similarity reaches the threshold share at least one of them."""
    if not features:
        return ()
    count = len(features) - math.ceil(threshold * len(features) - 1e-9) + 1
    return sorted(features, key=compute_rarity)[:count]
