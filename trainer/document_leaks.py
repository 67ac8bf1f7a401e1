"""Find leaks by document: training rows that were made from a document that is relevant to a held-out query.

Documents are the same by the rule of `text_matches`, on the openings of their texts. A row whose document is not known is
compared by its own text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from querylift.index_tools.corpora.corpus import Corpus
from querylift.plugin.errors import SettingsError
from querylift.trainer.candidates import Candidate, SourceDocument, find_source_document
from querylift.trainer.leaks import HeldOutDocument, HeldOutSplit, name_first_leaks
from querylift.trainer.rewards.rewarded_text import STUDENT_PREFIX
from querylift.trainer.text_matches import IdentifiedText, TextMatcher, normalise_text

OPENING_CHARS = 240
"""Texts are compared up to here: about 40 English words, which is most of what a student learns of a document."""
_TEXT_KEYS = {"text": "method", "chosen": "chosen_method", "rejected": "rejected_method"}
"""The keys under which candidates and pairs hold what the student learns, and those that say who wrote it."""
_NO_OPENINGS: Mapping[str, str] = MappingProxyType({})

RelevantDocuments: TypeAlias = "Mapping[str, Collection[str]]"
"""The ids of the relevant documents of each query, by query id."""


class TrainingDocument(NamedTuple):
    """A document that a training row rests on. `corpus` and `doc_id` are "" when they are not known.

    `text` is the text of the document, or of the row.
    """

    query_id: str
    corpus: str
    doc_id: str
    text: str


@dataclass(frozen=True, slots=True)
class DocumentLeak:
    """A training document that is relevant to queries of an evaluation split, and the reason why it counts as the same."""

    document: TrainingDocument = field(repr=False)
    split: str
    held_out_ids: tuple[str, ...]
    """The ids of the held-out queries."""
    reason: str

    def __str__(self) -> str:
        document = f"document {self.document.doc_id!r}" if self.document.doc_id else "a text"
        return (
            f"{document} of {self.document.query_id!r} is relevant to {self.held_out_ids[0]!r} of {self.split} "
            f"({self.reason})"
        )


def find_document_leaks(
    documents: Iterable[TrainingDocument], held_out: Sequence[HeldOutSplit]
) -> tuple[DocumentLeak, ...]:
    """Return a leak for every training document that is the same as a document of a held-out split.

    There are none when no split has documents.
    """
    return DocumentLeakFinder(held_out).find_leaks(documents)


class DocumentLeakFinder:
    """Finds leaks again and again. The documents of the held-out splits are prepared once."""

    def __init__(self, held_out: Sequence[HeldOutSplit]) -> None:
        self._held_out_documents = [
            (split.name, document.query_ids, IdentifiedText(split.corpus, doc_id, _cut_to_opening(document.opening)))
            for split in held_out
            for doc_id, document in split.documents.items()
        ]
        self._matcher = TextMatcher([text for _, _, text in self._held_out_documents])

    def find_leaks(self, documents: Iterable[TrainingDocument]) -> tuple[DocumentLeak, ...]:
        """Return a leak for every training document that is the same as a held-out document."""
        if not self._held_out_documents:
            return ()
        documents_by_text: dict[IdentifiedText, list[TrainingDocument]] = defaultdict(list)
        for document in dict.fromkeys(documents):
            text = IdentifiedText(document.corpus, document.doc_id, _cut_to_opening(document.text))
            documents_by_text[text].append(document)
        texts = list(documents_by_text)
        leaks = []
        for (position, held_out_position), reason in self._matcher.find_matches(texts).items():
            split_name, query_ids, _ = self._held_out_documents[held_out_position]
            leaks += [
                DocumentLeak(document, split_name, query_ids, reason) for document in documents_by_text[texts[position]]
            ]
        return tuple(leaks)


def find_leaks_of_relevant_documents(
    corpus: Corpus, relevant: RelevantDocuments, held_out: Sequence[HeldOutSplit]
) -> tuple[DocumentLeak, ...]:
    """Return the leaks of training queries by their relevant documents. Documents are read if a split has some."""
    if not any(split.documents for split in held_out):
        return ()
    return find_document_leaks(
        make_training_documents(corpus.name, relevant, read_openings(corpus, relevant)), held_out
    )


def raise_on_document_leaks(leaks: Sequence[DocumentLeak], *, remedy: str = "leave them out with --drop-leaks") -> None:
    """Raise SettingsError when there are leaks. The message names up to five of them."""
    if not leaks:
        return
    # One leak for each document.
    first_leaks = list({leak.document: leak for leak in reversed(leaks)}.values())[::-1]
    count = len(first_leaks)
    subject = (
        "1 training text is of a document that is"
        if count == 1
        else f"{count} training texts are of documents that are"
    )
    raise SettingsError(f"{subject} relevant to held-out queries: {name_first_leaks(first_leaks, count)}; {remedy}")


def collect_leaking_queries(leaks: Iterable[DocumentLeak]) -> frozenset[str]:
    """Return the ids of the training queries whose documents leak."""
    return frozenset(leak.document.query_id for leak in leaks)


def get_candidate_document(candidate: Candidate) -> TrainingDocument:
    """Return the document of a candidate, with the candidate's text."""
    source = candidate.document or SourceDocument("", "")
    return TrainingDocument(candidate.query_id, source.corpus, source.doc_id, candidate.text)


def list_row_documents(row: Mapping[str, Any]) -> Iterator[TrainingDocument]:
    """Yield the document of a candidate's row. A row of a pair gives one for each text. A broken row gives none.

    A student's own text gives none. It was not taken from a document.
    """
    source = find_source_document(row) or SourceDocument("", "")
    for key, method_key in _TEXT_KEYS.items():
        text, is_own = row.get(key), str(row.get(method_key, "")).startswith(STUDENT_PREFIX)
        if isinstance(text, str) and not is_own:
            yield TrainingDocument(str(row.get("query_id", "")), source.corpus, source.doc_id, text)


def select_relevant_documents(qrels: Mapping[str, Mapping[str, int]], *, relevant_from: int) -> RelevantDocuments:
    """Return the relevant documents of each query of `qrels`."""
    return {
        query_id: [doc_id for doc_id, grade in grades.items() if grade >= relevant_from]
        for query_id, grades in qrels.items()
    }


def read_openings(corpus: Corpus, relevant: RelevantDocuments) -> dict[str, str]:
    """Return the openings of relevant documents, by id. There are none when the corpus has no documents."""
    doc_ids = frozenset(doc_id for query_doc_ids in relevant.values() for doc_id in query_doc_ids)
    documents = corpus.find_documents(doc_ids) if corpus.has_documents else ()
    return {document.doc_id: _cut_to_opening(f"{document.title} {document.text}") for document in documents}


def make_training_documents(
    corpus_name: str, relevant: RelevantDocuments, openings: Mapping[str, str] = _NO_OPENINGS
) -> list[TrainingDocument]:
    """Return the relevant documents of training queries. Without openings, only their ids are compared."""
    return [
        TrainingDocument(query_id, corpus_name, doc_id, openings.get(doc_id, ""))
        for query_id, doc_ids in relevant.items()
        for doc_id in doc_ids
    ]


def make_held_out_documents(
    relevant: RelevantDocuments, openings: Mapping[str, str] = _NO_OPENINGS
) -> dict[str, HeldOutDocument]:
    """Return the relevant documents of held-out queries, by id. Without openings, only their ids are compared."""
    query_ids: dict[str, list[str]] = defaultdict(list)
    for query_id, doc_ids in relevant.items():
        for doc_id in doc_ids:
            query_ids[doc_id].append(query_id)
    return {doc_id: HeldOutDocument(tuple(ids), openings.get(doc_id, "")) for doc_id, ids in query_ids.items()}


def _cut_to_opening(text: str) -> str:
    return normalise_text(text[: 4 * OPENING_CHARS])[:OPENING_CHARS].strip()
