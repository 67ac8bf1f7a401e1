"""The form `neighbours`: the terms of the documents whose vectors are nearest to the query's.

A document d at similarity s counts exp((s - s1) / temperature), s1 being the nearest one's; a term of it counts that times
sqrt(tf / length of d) x idf. The sums over the documents, to the power of `shape.power`, are the weights.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin.errors import MissingExtra, SettingsError
from plugin.terms.folder import Shape
from plugin.terms.store import mapped

if TYPE_CHECKING:
    from plugin.terms.encoder import Vector
    from plugin.terms.store import Array

VECTORS = "documents.usearch"
ENDS, TERMS, WEIGHTS = "documents.ends.npy", "documents.terms.npy", "documents.weights.npy"
CONNECTIVITY, BUILD_BREADTH, SEARCH_BREADTH = 32, 256, 256
"""Of the graph that usearch walks (HNSW's M and two ef): docs/log.md has what they were chosen by."""


class Neighbours:
    """Vectors of documents and the terms of each. Raises SettingsError where a file is none of its kind, MissingExtra."""

    def __init__(self, folder: Path, shape: Shape, *, width: int) -> None:
        self._shape = shape
        self._vectors = open_vectors(folder / VECTORS, width=width)
        self._ends, self._terms, self._weights = (mapped(folder / name) for name in (ENDS, TERMS, WEIGHTS))

    def weigh(self, vector: Vector) -> tuple[Array, Array]:
        """The heaviest terms' numbers, heaviest first, and their weights. Empty where no document has a term."""
        import numpy as np

        found = self._vectors.search(in_eight_bits(vector), self._shape.documents)
        if not len(found.keys):
            return np.array([], np.int64), np.array([], np.float32)
        shares = np.exp((found.distances[0] - found.distances) / self._shape.temperature)
        parts = [self._document(int(number)) for number in found.keys]
        numbers, at = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
        weighed = np.concatenate([part[1] * share for part, share in zip(parts, shares, strict=True)])
        weights = np.bincount(at, weights=weighed, minlength=len(numbers)) ** self._shape.power
        best = np.argsort(-weights, kind="stable")[: self._shape.terms]
        return numbers[best], weights[best]

    def _document(self, number: int) -> tuple[Array, Array]:
        start = int(self._ends[number - 1]) if number else 0
        span = slice(start, int(self._ends[number]))
        return self._terms[span], self._weights[span].astype("f4")


def in_eight_bits(vectors: Vector) -> Array:
    """Vectors of shape (..., width), each scaled so that its largest number is 127: their cosines are what they were."""
    import numpy as np

    largest = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), 1e-12)
    return np.round(vectors * (127 / largest)).astype(np.int8)  # type: ignore[no-any-return]


def new_vectors(*, width: int) -> Any:
    """An empty index of eight-bit vectors. Raises MissingExtra."""
    try:
        import_module("onnxruntime")  # loaded after usearch 2.26, it ends the process with a segmentation fault
        from usearch.index import Index
    except ImportError as missing:
        raise MissingExtra(str(missing.name).split(".")[0], "expander") from None
    return Index(
        ndim=width,
        metric="cos",
        dtype="i8",
        connectivity=CONNECTIVITY,
        expansion_add=BUILD_BREADTH,
        expansion_search=SEARCH_BREADTH,
    )


def open_vectors(path: Path, *, width: int) -> Any:
    """The index in `path`, read where it lies."""
    index = new_vectors(width=width)
    try:
        index.view(str(path))
    except Exception as error:  # it raises RuntimeError, ValueError and others
        raise SettingsError(f"{path} cannot be read as vectors ({error}); build the expander again") from None
    index.expansion_search = SEARCH_BREADTH
    return index
