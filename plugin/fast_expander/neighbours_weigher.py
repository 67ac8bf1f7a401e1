"""The form `neighbours`: takes the terms of the documents whose vectors are nearest to the query's.

A document of cosine c has the weight exp((c - best cosine) / temperature). A term in it adds that weight times
sqrt(tf / length of the document) x idf. A term's weight is the sum over the documents, to the power of `shape.power`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.plugin.fast_expander.document_vectors import DocumentVectors
from querylift.plugin.fast_expander.expander_folder import ExpansionShape
from querylift.plugin.fast_expander.vocabulary import map_array_file

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector
    from querylift.plugin.fast_expander.vocabulary import Array

VECTORS_FILE = "documents.faiss"
TERM_ENDS_FILE, TERMS_FILE, WEIGHTS_FILE = "documents.ends.npy", "documents.terms.npy", "documents.weights.npy"


class NeighboursWeigher:
    """Weighs terms with the vectors and the terms of every document, read from `folder`.

    `group_ends` tells where the numbers of each group of fields end. Without it there is one group.
    Raises SettingsError when a file cannot be used, and MissingExtra.
    """

    def __init__(self, folder: Path, shape: ExpansionShape, *, width: int, group_ends: Sequence[int] = ()) -> None:
        self._shape = shape
        self._group_ends = group_ends
        self._vectors = DocumentVectors.read_file(folder / VECTORS_FILE, width=width)
        self._ends = map_array_file(folder / TERM_ENDS_FILE)
        self._terms = map_array_file(folder / TERMS_FILE)
        self._weights = map_array_file(folder / WEIGHTS_FILE)

    def weigh_terms(self, vector: Vector) -> tuple[Array, Array]:
        """Return the numbers of the heaviest terms of each group, and their weights. Without terms both are empty.

        The groups follow each other. In a group, the heaviest term comes first.
        """
        import numpy as np

        documents, cosines = (array[0] for array in self._vectors.find_nearest(vector[None], self._shape.documents))
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
