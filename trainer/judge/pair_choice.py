"""Choose the pairs that a teacher grades: the first documents of one system or several, and random ones further down."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from querylift.index_tools.engine import Engine
from querylift.index_tools.judging.document_texts import DEFAULT_TEXT_FIELDS, fetch_document_texts
from querylift.index_tools.searching import BodyFormatter, SearchedRun, format_search_body, search_offline
from querylift.plugin.errors import SettingsError
from querylift.trainer.judge.document_cut import DEFAULT_MAX_WORDS, cut_document


@dataclass(frozen=True, slots=True)
class PairChoice:
    """How many documents of each query are graded. Raises SettingsError when the numbers do not fit each other.

    The first documents are the hard ones to tell apart. Those from further down are mostly easy to grade 0.
    """

    first: int = 10
    random: int = 10
    """Documents drawn without replacement from the ranks after `first`, down to `depth`."""
    depth: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.first + self.random < 1:
            raise SettingsError("--first and --random are both 0; ask for at least one document of each query")
        if self.depth < self.first + self.random:
            raise SettingsError(
                f"--depth is {self.depth}, too few for {self.first} first and {self.random} random documents; "
                f"give at least {self.first + self.random}"
            )

    @property
    def hits(self) -> int:
        """The number of hits that a search must return."""
        return self.depth if self.random else self.first


def choose_pairs(
    run: Mapping[str, Sequence[str]], choice: PairChoice, *, pooled_ids: Mapping[str, Sequence[str]] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the chosen (query_id, doc_id), query by query. The draw of a query depends on the seed and its id alone.

    `run` is that of the plain search. `pooled_ids` replaces its first documents by those of several systems.
    """
    for query_id, doc_ids in run.items():
        further_ids = doc_ids[choice.first : choice.depth]
        generator = random.Random(f"pairs:{choice.seed}:{query_id}")
        drawn_ids = generator.sample(further_ids, min(choice.random, len(further_ids)))
        first_ids = doc_ids[: choice.first] if pooled_ids is None else pooled_ids.get(query_id, ())
        yield from ((query_id, doc_id) for doc_id in dict.fromkeys([*first_ids, *drawn_ids]))


DocumentPooler = Callable[[Mapping[str, str]], Mapping[str, Sequence[str]]]
"""Gives the documents to grade by query id. It takes the queries by their ids."""


@dataclass(frozen=True, slots=True)
class UngradedPair:
    """A query and a document, to be graded."""

    query_id: str
    doc_id: str
    query: str = field(repr=False)
    document: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChosenPairs:
    """The pairs to grade. `hitless_count` queries have no hit, and `textless_count` chosen documents have no text."""

    pairs: list[UngradedPair]
    hitless_count: int
    textless_count: int


def collect_pairs(
    engine: Engine,
    queries: Mapping[str, str],
    choice: PairChoice,
    *,
    index: str,
    format_body: BodyFormatter = format_search_body,
    fields: Sequence[str] = DEFAULT_TEXT_FIELDS,
    max_words: int = DEFAULT_MAX_WORDS,
    pool_documents: DocumentPooler | None = None,
) -> ChosenPairs:
    """Search the index with every query, choose documents, and return the pairs with the texts of `fields`.

    `pool_documents` gives the first documents of several systems. Without it they are those of the plain search.
    Raises SettingsError when there is no such index, when no query finds anything, or when no document has a text.
    """
    if not engine.has_index(index):
        raise SettingsError(f"there is no index {index} at {engine.url}; name another with --index")
    searched = search_offline(engine, queries, index=index, depth=choice.hits, format_body=format_body)
    _check_hits(searched, index)
    keys = list(choose_pairs(searched.run, choice, pooled_ids=pool_documents(queries) if pool_documents else None))
    texts = fetch_document_texts(engine, index, {doc_id for _, doc_id in keys}, fields)
    pairs = [
        UngradedPair(query_id, doc_id, queries[query_id], cut_document(texts[doc_id], max_words))
        for query_id, doc_id in keys
        if doc_id in texts
    ]
    hitless_count = sum(not doc_ids for doc_ids in searched.run.values())
    return ChosenPairs(pairs, hitless_count, textless_count=len(keys) - len(pairs))


def _check_hits(searched: SearchedRun, index: str) -> None:
    if any(searched.run.values()):
        return
    reason = next(iter(searched.refusals.values()), "")
    problem = f"{index} refuses the searches: {reason}" if reason else f"no query finds anything on {index}"
    raise SettingsError(f"{problem}; name what to search with --search-field or --body")
