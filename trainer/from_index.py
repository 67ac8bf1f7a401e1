"""Lessons out of an index: the fast expander as the teacher, of queries that people asked or that the documents hold.

Needs no judgments and no large model. A lesson is a query and the heaviest words of the documents nearest to it, in their order.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from index_tools.corpora import Corpus
from index_tools.trec import Document
from plugin.errors import SettingsError
from plugin.expansion import clean_query
from plugin.generators.expander import open_parts
from plugin.terms.folder import ABOUT, facts_of, read_about
from trainer.candidates import Candidate
from trainer.pseudo import pseudo_queries

METHOD = "expander"
QUERY_WORDS = 16
"""Words of a pseudo-query at most: whole sentences of documents are longer than what people ask."""


def queries_of(corpus: Corpus, *, per_document: int, max_documents: int | None = None, seed: int = 0) -> dict[str, str]:
    """Pseudo-queries by id (doc:ID:NUMBER), up to `per_document` of each document or of `max_documents` drawn ones.

    Reads the documents once, twice where it draws among them; the same seed draws the same. Raises SettingsError where no
    document has words.
    """
    chosen = None
    if max_documents is not None:
        ids = sorted(document.doc_id for document in corpus.documents() if _text(document))
        chosen = frozenset(random.Random(f"documents:{seed}").sample(ids, min(max_documents, len(ids))))
    made = {
        f"doc:{document.doc_id}:{number}": query
        for document in corpus.documents()
        if chosen is None or document.doc_id in chosen
        for number, query in enumerate(_queries(document, per_document, seed))
    }
    if not made:
        raise SettingsError(f"{corpus.name} has no document with words to ask about; name another corpus")
    return made


def _queries(document: Document, count: int, seed: int) -> list[str]:
    draw = random.Random(f"pseudo:{seed}:{document.doc_id}")
    drawn = (clean_query(query) for query in pseudo_queries(_text(document), count=count, draw=draw))
    return [" ".join(query.split()[:QUERY_WORDS]) for query in drawn if query]


def _text(document: Document) -> str:
    return f"{document.title} {document.text}".strip()


def answered(
    queries: Mapping[str, str],
    folder: Path,
    *,
    words: int,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Candidate]:
    """What the expander in `folder` says to each query, its heaviest `words` words; a query that it cannot read is passed over.

    The words are those that people write, not the index's terms: a student can spell them. Raises SettingsError, MissingExtra.
    """
    about = read_about(folder)
    if about.form == "cluster":
        raise SettingsError(
            f"{folder} is of the form 'cluster', which asks an engine; build one of another form to learn from"
        )
    _, parts = open_parts(folder)
    model, params = f"{METHOD}:{facts_of(folder / ABOUT).sha256[:16]}", {"words": words}
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        said = pool.map(parts.expand, map(clean_query, queries.values()))
        for done, ((query_id, query), expansion) in enumerate(zip(queries.items(), said, strict=True), 1):
            progress(done)
            if expansion is not None:
                text = " ".join(term.surface or term.term for term in expansion.terms[:words])
                yield Candidate(query_id, clean_query(query), METHOD, model, text, params)
