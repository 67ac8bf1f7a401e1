"""Split judged queries in two: queries to train on, and held-out ones. The unit is a query, or a group that shares documents."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.records import Qrels, Queries
from querylift.plugin.errors import SettingsError
from querylift.trainer.document_groups import choose_groups, group_queries_by_document
from querylift.trainer.document_leaks import (
    RelevantDocuments,
    collect_leaking_queries,
    find_document_leaks,
    find_leaks_of_relevant_documents,
    make_held_out_documents,
    make_training_documents,
    read_openings,
    select_relevant_documents,
)
from querylift.trainer.leaks import HeldOutSplit, collect_leaked_ids, find_leaks
from querylift.trainer.training_config import HeldOutBy

TRAIN, HELD = "train", "held"


@dataclass(frozen=True, slots=True)
class JudgedSplit:
    """The judged queries of a corpus that are split, and their judgments."""

    corpus: Corpus
    queries: Queries = field(repr=False)
    qrels: Qrels = field(repr=False)

    def select_relevant(self, queries: Mapping[str, str]) -> RelevantDocuments:
        """Return the relevant documents of some of the queries."""
        qrels = {query_id: self.qrels[query_id] for query_id in queries}
        return select_relevant_documents(qrels, relevant_from=self.corpus.relevant_from)


@dataclass(frozen=True, slots=True)
class QueryParts:
    """The two parts, and how many train queries were left out: as too alike, and for a relevant document that is shared."""

    held: Queries = field(repr=False)
    train: Queries = field(repr=False)
    alike_count: int
    sharing_count: int


def read_judged_split(corpus: Corpus, split: str | None) -> JudgedSplit:
    """Return the queries of a split that have a grade above 0, and the judgments."""
    qrels = corpus.read_qrels(split)
    queries = {
        query_id: text
        for query_id, text in corpus.read_queries(split).items()
        if any(grade > 0 for grade in qrels.get(query_id, {}).values())
    }
    return JudgedSplit(corpus, queries, qrels)


def choose_held_queries(judged: JudgedSplit, hold_out: int, *, by: HeldOutBy, seed: int) -> list[str]:
    """Return the ids of `hold_out` random queries. By document, they are whole groups of about as many queries.

    Raises SettingsError when there are too few queries, or when a group is too large.
    """
    if hold_out >= len(judged.queries):
        raise SettingsError(
            f"--hold-out is {hold_out}, and {judged.corpus.name} has {len(judged.queries)} judged queries; lower it"
        )
    if by == "document":
        groups = group_queries_by_document(judged.select_relevant(judged.queries))
        return choose_groups(groups, hold_out, seed=seed)
    query_ids = sorted(judged.queries)
    random.Random(seed).shuffle(query_ids)
    return query_ids[:hold_out]


def part_queries(
    judged: JudgedSplit, held_ids: Sequence[str], apart_splits: Sequence[HeldOutSplit], *, by: HeldOutBy
) -> QueryParts:
    """Return both parts. A train query is left out when it leaks into the held-out queries or into `apart_splits`.

    Raises SettingsError when no train query is left.
    """
    corpus = judged.corpus
    held = {query_id: judged.queries[query_id] for query_id in held_ids}
    others = {query_id: text for query_id, text in judged.queries.items() if query_id not in held}
    held_split = HeldOutSplit(HELD, corpus.name, held)
    if by == "document":
        relevant = judged.select_relevant(held)
        held_split = replace(held_split, documents=make_held_out_documents(relevant, read_openings(corpus, relevant)))
    held_out = [*apart_splits, held_split]
    alike_ids = collect_leaked_ids(find_leaks(others.items(), held_out, corpus=corpus.name))
    unlike = {query_id: text for query_id, text in others.items() if query_id not in alike_ids}
    sharing_ids = collect_leaking_queries(
        find_leaks_of_relevant_documents(corpus, judged.select_relevant(unlike), held_out)
    )
    train = {query_id: text for query_id, text in unlike.items() if query_id not in sharing_ids}
    if not train:
        raise SettingsError(
            f"no query of {corpus.name} is left to train on: all others are too like a held-out query, or share a document "
            "with one; lower --hold-out, or name fewer splits with --apart-from"
        )
    return QueryParts(held, train, len(alike_ids), len(sharing_ids))


def count_sharing_queries(
    judged: JudgedSplit, parts: QueryParts, apart_splits: Sequence[HeldOutSplit]
) -> dict[str, int]:
    """Return how many held-out queries share a relevant document with a train query, by split. Splits without any are left out.

    `apart_splits` come with their documents.
    """
    corpus = judged.corpus
    held_documents = make_held_out_documents(judged.select_relevant(parts.held))
    held_split = HeldOutSplit(HELD, corpus.name, parts.held, held_documents)
    train_documents = make_training_documents(corpus.name, judged.select_relevant(parts.train))
    sharing_ids: dict[str, set[str]] = defaultdict(set)
    for leak in find_document_leaks(train_documents, [*apart_splits, held_split]):
        sharing_ids[leak.split].update(leak.held_out_ids)
    return {name: len(query_ids) for name, query_ids in sorted(sharing_ids.items())}
