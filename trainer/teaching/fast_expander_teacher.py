"""Lessons out of an index: the fast expander as the teacher, of queries that people asked or that the documents hold.

Needs no judgments and no large model. A lesson is a query and the heaviest words of the documents nearest to it, in their order.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from querylift.index_tools.corpora.loading import Corpus
from querylift.index_tools.corpora.trec_files import Document
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import clean_query
from querylift.plugin.fast_expander.folder import identity_of
from querylift.plugin.generators.fast_expander import open_parts
from querylift.trainer.candidates import Appender, Candidate
from querylift.trainer.fast_expander.inverse_cloze import pseudo_queries
from querylift.trainer.teaching.teacher import Added, known_keys

METHOD = "expander"
QUERY_WORDS = 16
"""Words of a pseudo-query at most: whole sentences of documents are longer than what people ask."""
_AT_ONCE = 256


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


def teach(
    queries: Mapping[str, str],
    folder: Path,
    out: Path,
    *,
    words: int,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Added:
    """Append to `out` what the expander in `folder` says to each query that is not answered there: its heaviest `words` words.

    The words are those that people write, not the index's terms: a student can spell them. A query that the expander cannot read
    is counted as empty. Raises SettingsError, MissingExtra.
    """
    _, parts = open_parts(folder)
    model, params = identity_of(folder), {"words": words}
    known = known_keys(out)
    asked = [Candidate(query_id, clean_query(query), METHOD, model, "", params) for query_id, query in queries.items()]
    todo = [one for one in asked if one.key not in known]
    written = 0
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool, Appender(out) as appender:
        for start in range(0, len(todo), _AT_ONCE):
            some = todo[start : start + _AT_ONCE]
            for one, expansion in zip(some, pool.map(parts.expand, [one.query for one in some]), strict=True):
                if expansion is not None:
                    heaviest = replace(expansion, terms=expansion.terms[:words])
                    appender.write(replace(one, text=heaviest.words()).to_json())
                    written += 1
            progress(start + len(some))
    return Added(written=written, known=len(asked) - len(todo), empty=len(todo) - written)
