"""Nothing is trained on what is measured: finds training queries that stand in an evaluation split, as they are or nearly.

Pure. Two texts are near-duplicates where the Jaccard similarity (Jaccard 1912: shared over all) of their sets of words, or of
their sets of four-character runs, reaches the threshold. Words catch another word order, runs another inflection. Words that
only make a question of it do not count, or "what is the capital of France" would be that of Spain.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from querylift.plugin.errors import SettingsError

THRESHOLD = 0.6
"""Chosen on scifact and nfcorpus: below 0.6 pairs share a topic, from 0.6 to 0.7 most still are one claim reversed."""
SAME_ID_THRESHOLD = 0.3
"""Where the ids are the same, and nothing says that the corpora are: ids such as 1, 2, 3 are in every corpus."""
RUN_CHARS = 4
_NAMED = 5

_WORD = re.compile(r"[^\W_]+")
_QUESTION = frozenset(
    "a an and are at be by can could did do does for from has have how i in is it of on or should that the there to was were "
    "what when where which who why will with would you your".split()
)
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


@dataclass(frozen=True, slots=True)
class Leak:
    """A training query that an evaluation split holds too, and `why` it counts as the same."""

    training_id: str
    training_text: str = field(repr=False)
    split: str
    held_out_id: str
    held_out_text: str = field(repr=False)
    why: str

    def __str__(self) -> str:
        return f"{self.training_id!r} is {self.held_out_id!r} of {self.split} ({self.why})"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """An evaluation split: its name in messages, the corpus that its ids are of, and its query text by id."""

    name: str
    corpus: str
    queries: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Held:
    split: str
    corpus: str
    query_id: str
    text: str = field(repr=False)


def leaks(
    training: Iterable[tuple[str, str]],
    held_out: Iterable[HeldOut],
    *,
    corpus: str = "",
    threshold: float = THRESHOLD,
) -> tuple[Leak, ...]:
    """Return every pair of a training query (id, text) and a query of `held_out` that are the same, in the order of `training`.

    An id alone counts where the corpus is the same: a training id is one of `corpus`, or names its own ("fiqa:9188").
    Otherwise the same id counts from `SAME_ID_THRESHOLD` on. Texts compare always, letter case, punctuation and white space
    aside.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it lies above 0 and at most at 1")
    held = [_Held(of.name, of.corpus, query_id, text) for of in held_out for query_id, text in of.queries.items()]
    asked = list(dict.fromkeys(training))
    why: dict[tuple[int, int], str] = dict(_same_id(asked, held, corpus))
    ours, theirs = [normalised(text) for _, text in asked], [normalised(query.text) for query in held]
    for pair in _pairs(ours, theirs):
        why.setdefault(pair, "the same text")
    for features in (_words, _runs):
        for pair, share in _similar([*map(features, ours)], [*map(features, theirs)], threshold):
            why.setdefault(pair, f"{share:.0%} alike")
    for pair in _pairs([query_id for query_id, _ in asked], [query.query_id for query in held]):
        share = _alike(ours[pair[0]], theirs[pair[1]])
        if share >= SAME_ID_THRESHOLD:
            why.setdefault(pair, f"the same id, {share:.0%} alike")
    return tuple(_leak(asked[ours_at], held[theirs_at], why[ours_at, theirs_at]) for ours_at, theirs_at in sorted(why))


def refuse(found: Sequence[Leak], *, remedy: str = "leave them out with --drop-leaks") -> None:
    """Raise SettingsError that names up to five of them; do nothing where there are none."""
    if not found:
        return
    count = len(leaked(found))
    named = [next(leaks_of) for _, leaks_of in groupby(found, key=lambda leak: leak.training_id)][:_NAMED]
    more = f"; and {count - len(named)} more" if count > len(named) else ""
    what = "1 training query is" if count == 1 else f"{count} training queries are"
    raise SettingsError(f"{what} in an evaluation split: {'; '.join(map(str, named))}{more}; {remedy}")


def leaked(found: Iterable[Leak]) -> frozenset[str]:
    """The ids of the training queries to leave out."""
    return frozenset(leak.training_id for leak in found)


def normalised(text: str) -> str:
    """`text` in one letter case and without punctuation, its words one space apart."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def _leak(asked: tuple[str, str], held: _Held, why: str) -> Leak:
    return Leak(asked[0], asked[1], held.split, held.query_id, held.text, why)


def _same_id(
    asked: Sequence[tuple[str, str]], held: Sequence[_Held], corpus: str
) -> Iterator[tuple[tuple[int, int], str]]:
    places = defaultdict(list)
    for place, query in enumerate(held):
        places[f"{query.corpus}:{query.query_id}"].append(place)
    for ours, (query_id, _) in enumerate(asked):
        for name in (f"{corpus}:{query_id}", query_id):
            yield from (((ours, theirs), "the same id") for theirs in places.get(name, ()))


def _pairs(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The places of equal strings that are not empty."""
    places = defaultdict(list)
    for place, text in enumerate(theirs):
        places[text].append(place)
    for ours_at, text in enumerate(ours):
        yield from ((ours_at, theirs_at) for theirs_at in places.get(text, ()) if text)


def _words(text: str) -> frozenset[str]:
    """The words that say what is asked; a script written without spaces counts by pairs of characters."""
    words = text.split()
    telling = [word for word in words if word not in _QUESTION] or words
    return frozenset(piece for word in telling for piece in _pieces(word))


def _pieces(word: str) -> list[str]:
    if len(word) < 3 or not _UNSPACED.fullmatch(word):
        return [word]
    return [word[i : i + 2] for i in range(len(word) - 1)]


def _runs(text: str) -> frozenset[str]:
    padded = f" {text} " if text else ""
    return frozenset(padded[i : i + RUN_CHARS] for i in range(max(1, len(padded) - RUN_CHARS + 1)) if padded)


def _similar(
    ours: Sequence[frozenset[str]], theirs: Sequence[frozenset[str]], threshold: float
) -> Iterator[tuple[tuple[int, int], float]]:
    """The pairs whose similarity reaches the threshold, found by prefix filtering (Chaudhuri et al., ICDE 2006).

    Two such sets share one of their rarest members, so only texts that share a rare one are compared.
    """
    counts = Counter(feature for features in theirs for feature in features)

    def rarity(feature: str) -> tuple[int, str]:
        return counts[feature], feature

    places = defaultdict(list)
    for place, features in enumerate(theirs):
        for feature in _rarest(features, rarity, threshold):
            places[feature].append(place)
    for ours_at, features in enumerate(ours):
        near = {place for feature in _rarest(features, rarity, threshold) for place in places.get(feature, ())}
        for place in near:
            share = _jaccard(features, theirs[place])
            if share >= threshold:
                yield (ours_at, place), share


def _alike(one: str, other: str) -> float:
    return max(_jaccard(features(one), features(other)) for features in (_words, _runs))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


def _rarest(features: frozenset[str], rarity: Callable[[str], tuple[int, str]], threshold: float) -> Iterable[str]:
    kept = len(features) - math.ceil(threshold * len(features) - 1e-9) + 1
    return sorted(features, key=rarity)[:kept] if features else ()
