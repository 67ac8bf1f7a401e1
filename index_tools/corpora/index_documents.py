"""The documents of a corpus, read from the index that holds them. So an index needs no file of its documents."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.records import Document, normalize_id
from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.index_reader import join_field_texts, scan_documents
from querylift.plugin.errors import SettingsError
from querylift.plugin.settings import Settings

TITLE_FIELD = "title"
DEFAULT_FIELDS = (TITLE_FIELD, "text")
"""The fields of an index that `querylift index` built."""


def read_documents_from_index(
    corpus: Corpus, settings: Settings, index: str, *, fields: Sequence[str] = DEFAULT_FIELDS
) -> Corpus:
    """Return `corpus` with the documents of `index` in place of its own.

    `fields` are the source fields that are read. The field `title` is the title, and the others are the text. Raises
    SettingsError when the index does not exist. Reading raises it when no document has a text in these fields.
    """
    with Engine(settings) as engine:
        if not engine.has_index(index):
            raise SettingsError(f"there is no index {index} at {engine.url}; name another with --index")
    return replace(
        corpus,
        document_reader=partial(_iter_documents, settings, index, fields),
        document_finder=partial(_find_documents, settings, index, fields),
        has_documents=True,
    )


def _iter_documents(settings: Settings, index: str, fields: Sequence[str]) -> Iterator[Document]:
    """Stream all documents of the index. The title is part of the text."""
    has_text = False
    with Engine(settings) as engine:
        for page in scan_documents(engine, index, sources=fields):
            for document in page:
                has_text = has_text or bool(document.text)
                yield Document(normalize_id(document.doc_id), "", document.text)
    _check_text_was_read(has_text, index, fields)


def _find_documents(
    settings: Settings, index: str, fields: Sequence[str], doc_ids: Collection[str]
) -> Iterator[Document]:
    with Engine(settings) as engine:
        sources = engine.find_documents(index, doc_ids, fields=fields)
    text_fields = [name for name in fields if name != TITLE_FIELD]
    documents = []
    for doc_id, source in sources.items():
        title = join_field_texts(source, [TITLE_FIELD]) if TITLE_FIELD in fields else ""
        documents.append(Document(normalize_id(doc_id), title, join_field_texts(source, text_fields)))
    _check_text_was_read(not documents or any(document.title or document.text for document in documents), index, fields)
    yield from documents


def _check_text_was_read(has_text: bool, index: str, fields: Sequence[str]) -> None:
    if not has_text:
        raise SettingsError(
            f"no document of {index} has a text in {', '.join(fields)}; name its text fields with --text"
        )
