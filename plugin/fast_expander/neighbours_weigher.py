"""The form `neighbours`: takes the documents whose vectors are nearest to the query's, and their terms.

A document of cosine c has the weight exp((c - best cosine) / temperature). A term in it adds that weight times
sqrt(tf / length of the document) x idf. A term's weight is the sum over the documents, to the power of `shape.power`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.plugin.fast_expander.document_vectors import DocumentVectors
from querylift.plugin.fast_expander.expander_folder import ExpansionShape
from querylift.plugin.fast_expander.mapped_files import MappedTexts, list_text_files, map_array_file
from querylift.plugin.fast_expander.nearest_documents import limit_nearest_documents
from querylift.plugin.fast_expander.weights import Weights

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector
    from querylift.plugin.fast_expander.mapped_files import Array

VECTORS_FILE = "documents.faiss"
IDS_NAME = "documents.ids"
TERM_ENDS_FILE, TERMS_FILE, WEIGHTS_FILE = "documents.ends.npy", "documents.terms.npy", "documents.weights.npy"


class NeighboursWeigher:
    """Weighs terms with the vectors and the terms of every document, read from `folder`.

    `group_ends` tells where the numbers of each group of fields end. Without it there is one group. A folder of an older
    Querylift has no ids, so its expansions have no documents. Raises SettingsError when a file cannot be used, and
    MissingExtra.
    """

    def __init__(self, folder: Path, shape: ExpansionShape, *, width: int, group_ends: Sequence[int] = ()) -> None:
        self._shape = shape
        self._group_ends = group_ends
        self._vectors = DocumentVectors.read_file(folder / VECTORS_FILE, width=width)
        self._ends = map_array_file(folder / TERM_ENDS_FILE)
        self._terms = map_array_file(folder / TERMS_FILE)
        self._weights = map_array_file(folder / WEIGHTS_FILE)
        has_ids = (folder / list_text_files(IDS_NAME)[0]).is_file()
        self._ids = MappedTexts(folder, IDS_NAME) if has_ids else None

    def weigh(self, vector: Vector) -> Weights:
        """Return the heaviest terms and the nearest documents for a query's vector. Without documents there are no terms."""
        nearest_count = limit_nearest_documents(len(self._vectors)) if self._ids is not None else 0
        count = max(self._shape.documents, nearest_count)
        documents, cosines = (array[0] for array in self._vectors.find_nearest(vector[None], count))
        terms, term_weights = self._weigh_terms(documents[: self._shape.documents], cosines[: self._shape.documents])
        near = documents[:nearest_count][cosines[:nearest_count] > 0]
        return Weights(terms, term_weights, [self._ids[int(document)] for document in near] if self._ids else [])

    def _weigh_terms(self, documents: Array, cosines: Array) -> tuple[Array, Array]:
        """Return the numbers of the heaviest terms of each group in these documents, and their weights.

        The groups follow each other. In a group, the heaviest term comes first.
        """
        import numpy as np

        if not len(documents):
            return np.array([], np.int64), np.array([], np.float32)
        document_weights = np.exp((cosines - cosines[0]) / self._shape.temperature)
        document_terms = [self._read_document_terms(int(document)) for document in documents]
        numbers, positions = np.unique(np.concatenate([terms for terms, _ in document_terms]), return_inverse=True)
        contributions = np.concatenate(
            [weights * share for (_, weights), share in zip(document_terms, document_weights, strict=True)]
        )
        weights = np.bincount(positions, weights=contributions, minlength=len(numbers)) ** self._shape.power
        group_stops = np.searchsorted(numbers, self._group_ends) if self._group_ends else [len(numbers)]
        group_starts = [0, *group_stops[:-1]]
        heaviest = np.concatenate(
            [
                start + np.argsort(-weights[start:stop], kind="stable")[: self._shape.terms]
                for start, stop in zip(group_starts, group_stops, strict=True)
            ]
        )
        return numbers[heaviest], weights[heaviest]

    def _read_document_terms(self, document: int) -> tuple[Array, Array]:
        """Return the numbers of one document's terms, and sqrt(tf / length) x idf of each."""
        start = int(self._ends[document - 1]) if document else 0
        span = slice(start, int(self._ends[document]))
        return self._terms[span], self._weights[span].astype("f4")
