"""The fast expander as a teacher: the student learns to write words of the index.

This needs no judgments and no large model. A candidate is the heaviest words of the documents nearest to a query. The queries are
those of a split, or pseudo-queries that are drawn from the documents (inverse cloze).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.records import Document
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import clean_query
from querylift.plugin.fast_expander.expander_folder import compute_expander_identity
from querylift.plugin.generators.fast_expander import open_expander_model
from querylift.plugin.settings import load_settings
from querylift.plugin.words import take_first_words
from querylift.trainer.candidates import Candidate, JsonLinesAppender, SourceDocument
from querylift.trainer.fast_expander.inverse_cloze import create_pseudo_queries
from querylift.trainer.teaching.candidate_files import AppendResult, read_request_keys

EXPANDER_METHOD = "expander"
MAX_PSEUDO_QUERY_WORDS = 16
"""A pseudo-query is cut to so many words, because sentences of documents are longer than users' queries."""
_BATCH_SIZE = 256


class PseudoQuery(NamedTuple):
    """A text to ask about, and the document that it was drawn from."""

    text: str
    document: SourceDocument


def draw_pseudo_queries(
    corpus: Corpus, *, per_document: int, max_documents: int | None = None, seed: int = 0
) -> dict[str, PseudoQuery]:
    """Draw up to `per_document` pseudo-queries from each document, by id (doc:ID:NUMBER).

    `max_documents` draws them from so many random documents only, and reads the documents twice. `seed` decides all draws.
    Raises SettingsError when no document has words.
    """
    chosen_ids = None
    if max_documents is not None:
        ids = sorted(document.doc_id for document in corpus.iter_documents() if _join_title_and_text(document))
        chosen_ids = frozenset(random.Random(f"documents:{seed}").sample(ids, min(max_documents, len(ids))))
    queries = {}
    for document in corpus.iter_documents():
        if chosen_ids is None or document.doc_id in chosen_ids:
            for number, query in enumerate(_draw_document_queries(document, per_document, seed)):
                source = SourceDocument(corpus.name, document.doc_id)
                queries[f"doc:{document.doc_id}:{number}"] = PseudoQuery(query, source)
    if not queries:
        raise SettingsError(f"{corpus.name} has no document with words to ask about; name another corpus")
    return queries


def _draw_document_queries(document: Document, count: int, seed: int) -> list[str]:
    draw = random.Random(f"pseudo:{seed}:{document.doc_id}")
    spans = create_pseudo_queries(_join_title_and_text(document), count=count, draw=draw)
    queries = [clean_query(span) for span in spans]
    return [take_first_words(query, MAX_PSEUDO_QUERY_WORDS) for query in queries if query]


def _join_title_and_text(document: Document) -> str:
    return f"{document.title} {document.text}".strip()


def list_expander_requests(queries: Mapping[str, str], folder: Path, *, words: int) -> list[Candidate]:
    """Return a candidate without text for every query to the expander in `folder`."""
    model = compute_expander_identity(folder)
    return [
        Candidate(query_id, clean_query(query), EXPANDER_METHOD, model, "", {"words": words})
        for query_id, query in queries.items()
    ]


def list_pseudo_query_requests(queries: Mapping[str, PseudoQuery], folder: Path, *, words: int) -> list[Candidate]:
    """Return a candidate without text for every pseudo-query. It names the document that the query was drawn from."""
    texts = {query_id: query.text for query_id, query in queries.items()}
    requests = list_expander_requests(texts, folder, words=words)
    return [replace(request, document=queries[request.query_id].document) for request in requests]


def ask_expander(
    requests: Sequence[Candidate],
    folder: Path,
    out: Path,
    *,
    words: int,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> AppendResult:
    """Answer every request that `out` lacks with the expander's `words` heaviest words, and append the answers to `out`.

    The answers are surface words, not terms of the index, so that a student can spell them. A query that the expander
    cannot read counts as empty. Raises SettingsError and MissingExtra when the expander cannot be opened.
    """
    _, model = open_expander_model(folder, load_settings(None).encoder)
    known_keys = read_request_keys(out)
    unanswered = [request for request in requests if request.request_key not in known_keys]
    written_count = 0
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool, JsonLinesAppender(out) as appender:
        for start in range(0, len(unanswered), _BATCH_SIZE):
            batch = unanswered[start : start + _BATCH_SIZE]
            expansions = pool.map(model.expand, [request.query for request in batch])
            for request, expansion in zip(batch, expansions, strict=True):
                if expansion is not None:
                    heaviest = replace(expansion, terms=expansion.terms[:words])
                    appender.append(replace(request, text=heaviest.to_text()).to_json())
                    written_count += 1
            progress(start + len(batch))
    return AppendResult(
        written=written_count, known=len(requests) - len(unanswered), empty=len(unanswered) - written_count
    )
