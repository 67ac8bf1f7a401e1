"""Relevant documents of judged queries, as candidates and as few-shot examples.

No teacher is needed: the beginning of a relevant document stands in for a passage.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.records import Document
from querylift.plugin.expansion import clean_query
from querylift.plugin.words import count_words, take_first_words
from querylift.trainer.candidates import Candidate, SourceDocument
from querylift.trainer.teaching.prompts import PASSAGE_WORDS, FewShotExample

DOCUMENT_WORDS = 60
"""Words of a document that becomes a candidate. They are more than a student may write, so that no room stays empty."""
RELEVANT_DOCUMENT_METHOD = "relevant-document"
"""The method of a candidate whose text is the beginning of a document."""


@dataclass(frozen=True, slots=True)
class RelevantDocument:
    """A document that was judged relevant to a query."""

    query_id: str
    doc_id: str
    grade: int


def read_document_candidates(
    corpus: Corpus,
    split: str | None,
    *,
    per_query: int,
    queries: Mapping[str, str] | None = None,
    words: int = DOCUMENT_WORDS,
    seed: int = 0,
) -> Iterator[Candidate]:
    """Yield up to `per_query` relevant documents of each query, best grade first, with title and first `words` words.

    `queries` limits the queries of the split. Documents that are not in the corpus are skipped. Reads the documents once.
    """
    queries = corpus.read_queries(split) if queries is None else queries
    documents = [
        document
        for ranking in rank_relevant_documents(corpus, split, seed=seed)
        if ranking[0].query_id in queries
        for document in ranking[:per_query]
    ]
    texts = read_opening_words(corpus, {document.doc_id for document in documents}, words=words, with_title=True)
    for document in documents:
        if document.doc_id in texts:
            query = clean_query(queries[document.query_id])
            params = {"doc_id": document.doc_id, "grade": document.grade, "words": words}
            text, ended = texts[document.doc_id]
            source = SourceDocument(corpus.name, document.doc_id)
            yield Candidate(
                document.query_id, query, RELEVANT_DOCUMENT_METHOD, "judgments", text, params, ended, source
            )


def draw_examples(
    corpus: Corpus, split: str | None, *, count: int, seed: int, excluded_ids: Collection[str] = ()
) -> tuple[FewShotExample, ...]:
    """Draw `count` judged queries of `split` and a spare one, each with the beginning of its best document.

    The spare one replaces an example that is itself being asked. Queries of `excluded_ids`, and those whose documents have no
    text, are skipped. The result is shorter when the split has too few. Reads the documents once.
    """
    queries = corpus.read_queries(split)
    best = {ranking[0].query_id: ranking[0] for ranking in rank_relevant_documents(corpus, split, seed=seed)}
    order = sorted(best.keys() - set(excluded_ids))
    random.Random(f"examples:{seed}").shuffle(order)
    # Some documents have no text, so twice as many are read as are needed.
    order = order[: 2 * count + 8]
    texts = read_opening_words(
        corpus, {best[query_id].doc_id for query_id in order}, words=PASSAGE_WORDS, with_title=False
    )
    passages = {query_id: texts[best[query_id].doc_id].text for query_id in order if best[query_id].doc_id in texts}
    usable = [query_id for query_id, passage in passages.items() if passage][: count + 1]
    return tuple(FewShotExample(query_id, clean_query(queries[query_id]), passages[query_id]) for query_id in usable)


def rank_relevant_documents(corpus: Corpus, split: str | None, *, seed: int) -> Iterator[list[RelevantDocument]]:
    """Yield the relevant documents of each query that has some, best grade first. `seed` orders equal grades."""
    for query_id, grades in corpus.read_qrels(split).items():
        documents = [
            RelevantDocument(query_id, doc_id, grade)
            for doc_id, grade in sorted(grades.items())
            if grade >= corpus.relevant_from
        ]
        random.Random(f"relevant:{seed}:{query_id}").shuffle(documents)
        if documents:
            yield sorted(documents, key=lambda document: -document.grade)


class DocumentOpening(NamedTuple):
    """The beginning of a document. `ended` is False when the document goes on after it."""

    text: str
    ended: bool


def read_opening_words(
    corpus: Corpus, doc_ids: Collection[str], *, words: int, with_title: bool
) -> Mapping[str, DocumentOpening]:
    """Return the first `words` words of each document, by id. A document without text gives its title.

    `querylift.plugin.words` says what counts as a word.
    """
    return {
        document.doc_id: _format_opening(document, words, with_title=with_title)
        for document in corpus.find_documents(frozenset(doc_ids))
    }


def _format_opening(document: Document, words: int, *, with_title: bool) -> DocumentOpening:
    text = take_first_words(document.text, words)
    title = " ".join(document.title.split())
    opening = f"{title} {text}".strip() if with_title or not text else text
    return DocumentOpening(opening, ended=count_words(document.text) <= words)
