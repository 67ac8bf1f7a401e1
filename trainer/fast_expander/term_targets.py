"""What a trained matrix should answer to a query: a distribution over the terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from querylift.index_tools.fast_expander.terms_form import WeightedDocuments
from querylift.plugin.fast_expander.document_vectors import DocumentVectors

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from querylift.plugin.fast_expander.mapped_files import Array


class TermTargets:
    """Makes target distributions over the terms, from the nearest documents of a query or from given documents.

    The terms of the nearest documents, weighted by similarity, are the answer of the form `neighbours`. A matrix that learns
    them needs no judgments, and keeps no documents.
    """

    def __init__(self, documents: WeightedDocuments, *, neighbours: int, temperature: float) -> None:
        import numpy as np
        from scipy.sparse import csr_matrix

        self._neighbours = min(neighbours, len(documents.ends))
        self._temperature = temperature
        ends = np.concatenate([[0], documents.ends])
        shape = (len(documents.ends), documents.term_count)
        self._term_weights = csr_matrix((documents.weights, documents.terms, ends), shape=shape)
        self._term_shares = normalize_rows(self._term_weights)
        self._vectors = DocumentVectors.create_empty(documents.vectors)
        self._vectors.add(documents.vectors)

    def build_from_neighbours(self, vectors: Array) -> csr_matrix:
        """Return a row for each query vector: the terms of its nearest documents, by their similarity.

        The shape is (queries, terms). A row sums to 1, or to 0 when no near document has a term.
        """
        import numpy as np
        from scipy.sparse import csr_matrix

        document_numbers, cosines = self._vectors.find_nearest(vectors, self._neighbours)
        shares = np.exp((cosines - cosines[:, :1]) / self._temperature)
        row_ends = np.arange(0, document_numbers.size + 1, document_numbers.shape[1])
        shape = (len(document_numbers), self._term_weights.shape[0])
        neighbours = csr_matrix((shares.ravel(), document_numbers.ravel(), row_ends), shape=shape)
        return normalize_rows(neighbours @ self._term_weights)

    def build_from_documents(self, numbers: Sequence[int]) -> csr_matrix:
        """Return one row: the terms of the documents with these numbers. Each document counts equally."""
        import numpy as np
        from scipy.sparse import csr_matrix

        shape = (1, self._term_weights.shape[0])
        documents = csr_matrix((np.ones(len(numbers)), numbers, [0, len(numbers)]), shape=shape)
        return normalize_rows(documents @ self._term_shares)


def normalize_rows(rows: csr_matrix) -> csr_matrix:
    """Scale each row so that it sums to 1. An empty row stays empty."""
    import numpy as np
    from scipy.sparse import csr_matrix, diags

    sums = np.asarray(rows.sum(axis=1)).ravel()
    return csr_matrix(diags(np.divide(1, sums, out=np.zeros_like(sums, dtype=float), where=sums > 0)) @ rows)
