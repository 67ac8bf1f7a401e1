"""The form `neighbours`: the terms of the documents whose vectors are nearest to the query's.

A document d at similarity s counts exp((s - s1) / temperature), s1 being the nearest one's; a term of it counts that times
sqrt(tf / length of d) x idf. The sums over the documents, to the power of `shape.power`, are the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from querylift.plugin.fast_expander.document_vectors import Vectors
from querylift.plugin.fast_expander.folder import Shape
from querylift.plugin.fast_expander.vocabulary import mapped

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector
    from querylift.plugin.fast_expander.vocabulary import Array

VECTORS = "documents.faiss"
ENDS, TERMS, WEIGHTS = "documents.ends.npy", "documents.terms.npy", "documents.weights.npy"


class Neighbours:
    """Vectors of documents and the terms of each. Raises SettingsError where a file is none of its kind, MissingExtra."""

    def __init__(self, folder: Path, shape: Shape, *, width: int) -> None:
        self._shape = shape
        self._vectors = Vectors.read(folder / VECTORS, width=width)
        self._ends, self._terms, self._weights = (mapped(folder / name) for name in (ENDS, TERMS, WEIGHTS))

    def weigh(self, vector: Vector) -> tuple[Array, Array]:
        """The heaviest terms' numbers, heaviest first, and their weights. Empty where no document has a term."""
        import numpy as np

        found, cosines = (array[0] for array in self._vectors.nearest(vector[None], self._shape.documents))
        if not len(found):
            return np.array([], np.int64), np.array([], np.float32)
        shares = np.exp((cosines - cosines[0]) / self._shape.temperature)
        parts = [self._document(int(number)) for number in found]
        numbers, at = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
        weighed = np.concatenate([part[1] * share for part, share in zip(parts, shares, strict=True)])
        weights = np.bincount(at, weights=weighed, minlength=len(numbers)) ** self._shape.power
        best = np.argsort(-weights, kind="stable")[: self._shape.terms]
        return numbers[best], weights[best]

    def _document(self, number: int) -> tuple[Array, Array]:
        start = int(self._ends[number - 1]) if number else 0
        span = slice(start, int(self._ends[number]))
        return self._terms[span], self._weights[span].astype("f4")
