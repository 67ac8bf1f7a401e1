"""Find leaks: training queries that are, exactly or nearly, queries of an evaluation split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from querylift.plugin.errors import SettingsError
from querylift.trainer.text_matches import NEAR_DUPLICATE_THRESHOLD, IdentifiedText, find_text_matches

MAX_NAMED_LEAKS = 5
"""An error names so many leaks."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A training query that is also in an evaluation split, and the reason why the two count as the same."""

    training_id: str
    split: str
    held_out_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.training_id!r} is {self.held_out_id!r} of {self.split} ({self.reason})"


@dataclass(frozen=True, slots=True)
class HeldOutDocument:
    """A document that is relevant to held-out queries, and its opening, which may be empty."""

    query_ids: tuple[str, ...]
    opening: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class HeldOutSplit:
    """An evaluation split: its name for messages, the corpus of its ids, and its query texts by id.

    `documents` are the relevant documents of its queries, by id. They are empty when only queries are held out.
    """

    name: str
    corpus: str
    queries: Mapping[str, str] = field(repr=False)
    documents: Mapping[str, HeldOutDocument] = field(default_factory=dict, repr=False)


def find_leaks(
    training: Iterable[tuple[str, str]],
    held_out: Iterable[HeldOutSplit],
    *,
    corpus: str = "",
    threshold: float = NEAR_DUPLICATE_THRESHOLD,
) -> tuple[Leak, ...]:
    """Return every pair of a training query (id, text) and a held-out query that are the same, in the order of `training`.

    `find_text_matches` says what is the same. A training id is of `corpus`, or names its own ("fiqa:9188").
    """
    training_queries = [IdentifiedText(corpus, query_id, text) for query_id, text in dict.fromkeys(training)]
    held_out_queries = [
        (split.name, IdentifiedText(split.corpus, query_id, text))
        for split in held_out
        for query_id, text in split.queries.items()
    ]
    matches = find_text_matches(training_queries, [query for _, query in held_out_queries], threshold=threshold)
    leaks = []
    for (training_position, held_out_position), reason in matches.items():
        split_name, query = held_out_queries[held_out_position]
        leaks.append(Leak(training_queries[training_position].text_id, split_name, query.text_id, reason))
    return tuple(leaks)


def raise_on_leaks(leaks: Sequence[Leak], *, remedy: str = "leave them out with --drop-leaks") -> None:
    """Raise SettingsError when there are leaks. The message names up to five of them."""
    if not leaks:
        return
    count = len(collect_leaked_ids(leaks))
    # One leak for each training query.
    first_leaks = [next(group) for _, group in groupby(leaks, key=lambda leak: leak.training_id)]
    subject = "1 training query is" if count == 1 else f"{count} training queries are"
    raise SettingsError(f"{subject} in an evaluation split: {name_first_leaks(first_leaks, count)}; {remedy}")


def name_first_leaks(leaks: Sequence[object], count: int) -> str:
    """Return the first leaks as text, up to five of them, and how many more of `count` there are."""
    named_leaks = leaks[:MAX_NAMED_LEAKS]
    more = f"; and {count - len(named_leaks)} more" if count > len(named_leaks) else ""
    return "; ".join(map(str, named_leaks)) + more


def collect_leaked_ids(leaks: Iterable[Leak]) -> frozenset[str]:
    """Return the ids of the training queries that leak."""
    return frozenset(leak.training_id for leak in leaks)
