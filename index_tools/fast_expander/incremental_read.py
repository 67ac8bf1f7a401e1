"""Reads an index into parts. Only documents with a new text are encoded, and documents that are gone are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.document_parts import CountedTerms, DocumentPart, DocumentParts
from querylift.index_tools.fast_expander.document_selection import EVERYTHING, DocumentSelection
from querylift.index_tools.fast_expander.index_fields import AnalysedFields
from querylift.index_tools.fast_expander.index_reader import IndexedDocument, fetch_terms, scan_documents
from querylift.index_tools.fast_expander.surface_words import SurfaceWords
from querylift.plugin.fast_expander.document_vectors import quantize_to_eight_bits
from querylift.plugin.fast_expander.text_encoder import TextEncoder

_PART_DOCUMENTS = 2000
_TERM_REQUEST_DOCUMENTS = 200
"""The number of documents in one `_mtermvectors` request."""
_ID_QUERY_DOCUMENTS = 500
_ID_PAGE_DOCUMENTS = 2000
"""The number of documents in a page that holds no texts."""


class IncrementalReader:
    """Brings `parts` up to date with the selected documents of the index. It encodes `threads` documents at once.

    `encoded` counts the documents that were newly encoded, `without_text` those without text, and `unreadable` those of
    which the encoder knows too few words.
    """

    def __init__(
        self,
        engine: Engine,
        index: str,
        fields: AnalysedFields,
        parts: DocumentParts,
        encoder: TextEncoder,
        *,
        threads: int,
        selection: DocumentSelection = EVERYTHING,
    ) -> None:
        self._engine = engine
        self._index = index
        self._fields = fields
        self._parts = parts
        self._encoder = encoder
        self._threads = threads
        self._selection = selection
        self._surfaces = [SurfaceWords(engine, fields.indices[0], group[0]) for group in fields.groups]
        self._digests: list[Any] = []
        """The digests of each part."""
        self._rows: dict[str, tuple[int, int]] = {}
        """Document key to (number of the part, row)."""
        self.encoded = 0
        self.without_text = 0
        self.unreadable = 0

    def read_changes(
        self,
        progress: Callable[[int, int], None],
        *,
        query: Mapping[str, Any] | None = None,
        rows_before: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        """Read the index, and return the rows of each part that hold a document of today. Returns [] when there is none.

        With `query`, only the documents that it matches are read, and those that have no row in `rows_before`, the current
        rows of the last build. The latter are new to the index although their date may be old.
        """
        for number, part in enumerate(self._parts):
            self._record_rows(number, part, range(len(part.keys)) if rows_before is None else rows_before[number])
        keys_in_index = set[str]()
        self._store_new_documents(self._scan_changes(query, keys_in_index, progress))
        if (
            query is not None
        ):  # The other documents have not changed, but some may be gone, and some may have come back.
            missing: list[IndexedDocument] = []
            for documents in self._scan_ids(None):
                missing += [
                    document
                    for document in documents
                    if document.key not in keys_in_index and document.key not in self._rows
                ]
                keys_in_index.update(document.key for document in documents)
            self._store_new_documents(self._fetch_texts(missing))
        current_rows: list[list[int]] = [[] for _ in self._digests]
        for key, (number, row) in self._rows.items():
            if key in keys_in_index:
                current_rows[number].append(row)
        return current_rows if any(current_rows) else []

    def _scan_changes(
        self, query: Mapping[str, Any] | None, keys_in_index: set[str], progress: Callable[[int, int], None]
    ) -> Iterator[IndexedDocument]:
        """Yield the selected documents that `query` matches, with their texts. Add their keys to `keys_in_index`."""
        total, read_count = self._engine.count_documents(self._index), 0
        for documents in self._scan_ids(query) if self._selection.is_small else self._scan_texts(query):
            read_count += len(documents)
            keys_in_index.update(document.key for document in documents)
            yield from self._fetch_texts(documents) if self._selection.is_small else documents
            progress(read_count, total)

    def _scan_texts(self, query: Mapping[str, Any] | None) -> Iterator[list[IndexedDocument]]:
        """Yield the selected documents in pages."""
        for documents in scan_documents(self._engine, self._index, sources=self._fields.sources, query=query):
            yield [document for document in documents if self._selection.includes(document.doc_id)]

    def _scan_ids(self, query: Mapping[str, Any] | None) -> Iterator[list[IndexedDocument]]:
        """Yield the selected documents in pages, without their texts."""
        for documents in scan_documents(self._engine, self._index, sources=(), query=query, size=_ID_PAGE_DOCUMENTS):
            yield [document for document in documents if self._selection.includes(document.doc_id)]

    def _store_new_documents(self, documents: Iterable[IndexedDocument]) -> None:
        """Encode the documents whose text is new, and add them to the parts."""
        new_documents = (document for document in documents if self._should_encode(document))
        while batch := list(islice(new_documents, _PART_DOCUMENTS)):
            part = self._create_part(batch)
            self._parts.add_part(part)
            self._record_rows(len(self._digests), part, range(len(part.keys)))
            self.encoded += len(batch)

    def _fetch_texts(self, documents: Sequence[IndexedDocument]) -> Iterator[IndexedDocument]:
        """Yield documents, which were scanned without their texts, with their texts."""
        remaining, missing_keys = iter(documents), {document.key for document in documents}
        while batch := list(islice(remaining, _ID_QUERY_DOCUMENTS)):
            query = {"ids": {"values": [document.doc_id for document in batch]}}
            for hits in scan_documents(self._engine, self._index, sources=self._fields.sources, query=query):
                # The same id may stand in several indices.
                wanted_hits = [hit for hit in hits if hit.key in missing_keys]
                missing_keys.difference_update(hit.key for hit in wanted_hits)
                yield from wanted_hits

    def _should_encode(self, document: IndexedDocument) -> bool:
        """Whether the text of the document is new. A document without text loses its row, and is counted."""
        if not document.text:
            self.without_text += 1
            self._rows.pop(document.key, None)
            return False
        number, row = self._rows.get(document.key, (None, 0))
        return number is None or int(self._digests[number][row]) != _calculate_digest(document.text)

    def _record_rows(self, number: int, part: DocumentPart, rows: Sequence[int]) -> None:
        """Note that part `number` holds its documents of `rows`. A later part replaces an earlier one."""
        self._digests.append(part.digests)
        self._rows.update({part.keys[row]: (number, row) for row in rows})

    def _create_part(self, documents: Sequence[IndexedDocument]) -> DocumentPart:
        """Encode documents, and fetch their terms."""
        import numpy as np

        vectors = self._encoder.encode_documents([document.text for document in documents], threads=self._threads)
        self.unreadable += len(documents) - int(vectors.any(axis=1).sum())
        term_counts = list(self._fetch_terms(documents))
        texts = [document.text for document in documents]
        return DocumentPart(
            keys=[document.key for document in documents],
            digests=np.array([_calculate_digest(text) for text in texts], dtype=np.uint64),
            vectors=quantize_to_eight_bits(vectors),
            groups=[
                _create_counted_terms([counts[number] for counts in term_counts], surfaces.find_commonest_words(texts))
                for number, surfaces in enumerate(self._surfaces)
            ],
        )

    def _fetch_terms(self, documents: Sequence[IndexedDocument]) -> Iterator[tuple[dict[str, int], ...]]:
        """Yield, for each document, how often each term stands in each group of fields."""
        remaining = iter(documents)
        while batch := list(islice(remaining, _TERM_REQUEST_DOCUMENTS)):
            yield from fetch_terms(self._engine, batch, self._fields)


def _create_counted_terms(
    term_counts: Iterable[Mapping[str, int]], surfaces: Mapping[str, tuple[str, int]]
) -> CountedTerms:
    """Return the terms of documents, from how often each term stands in each document."""
    import numpy as np

    numbers: dict[str, int] = {}
    terms: list[int] = []
    counts: list[int] = []
    ends, lengths = [], []
    for document_counts in term_counts:
        terms.extend(numbers.setdefault(term, len(numbers)) for term in document_counts)
        counts.extend(document_counts.values())
        ends.append(len(terms))
        lengths.append(sum(document_counts.values()))
    return CountedTerms(
        ends=np.array(ends, dtype=np.int64),
        terms=np.array(terms, dtype=np.uint32),
        counts=np.minimum(np.array(counts, dtype=np.int64), 65535).astype(np.uint16),
        lengths=np.array(lengths, dtype=np.uint32),
        vocabulary=list(numbers),
        surfaces=surfaces,
    )


def _calculate_digest(text: str) -> int:
    """Return a hash of 64 bits. Half of a surrogate pair in the text is allowed."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
