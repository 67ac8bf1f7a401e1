"""Vectors of documents in a file, and the search for the nearest ones.

faiss searches by HNSW (arXiv 1603.09320) over eight-bit codes, in a memory-mapped file. Vectors have length 1, so the
inner product of two is their cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from querylift.plugin.errors import MissingExtra, SettingsError

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.mapped_files import Array

CONNECTIVITY, BUILD_BREADTH, SEARCH_BREADTH = 32, 128, 256
"""HNSW's M, efConstruction and efSearch. docs/log.md has the measurements behind these values."""


class DocumentVectors:
    """Vectors by document number. Numbers count from 0, in the order in which vectors were added."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def create_empty(cls, sample: Array) -> DocumentVectors:
        """Return an index without vectors. Raises MissingExtra.

        `sample` has the shape (vectors, width). The range of its numbers sets the range of the eight-bit codes.
        """
        faiss = _import_faiss()
        width = sample.shape[1]
        index = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_8bit, CONNECTIVITY, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_BREADTH
        index.train(normalize_vectors(sample))
        return cls(index)

    @classmethod
    def read_file(cls, path: Path, *, width: int) -> DocumentVectors:
        """Open a file of vectors. Raises SettingsError when it holds no vectors of this `width`, MissingExtra."""
        faiss = _import_faiss()
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except Exception as error:  # a RuntimeError that holds a C++ trace
            reason = str(error).strip().rpartition("\n")[2][:200]
            raise SettingsError(f"{path} cannot be read as vectors ({reason}); build the expander again") from None
        if not isinstance(index, faiss.IndexHNSWSQ) or index.d != width:
            raise SettingsError(f"{path} holds no vectors of {width} numbers; build the expander again")
        return cls(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: Array) -> None:
        """Add vectors of any length, in an array of the shape (vectors, width)."""
        self._index.add(normalize_vectors(vectors))

    def write_file(self, path: Path) -> None:
        """Write the file that `read_file` opens."""
        _import_faiss().write_index(self._index, str(path))

    def find_nearest(self, vectors: Array, count: int, *, exactly: bool = False) -> tuple[Array, Array]:
        """Return numbers and cosines of the `count` nearest documents of each vector, nearest first.

        Both arrays have the shape (vectors, at most `count`). `exactly` compares every document instead of walking the
        HNSW graph.
        """
        faiss = _import_faiss()
        count = min(count, len(self))
        if exactly:
            cosines, numbers = self._index.storage.search(normalize_vectors(vectors), count)
        else:
            params = faiss.SearchParametersHNSW(efSearch=max(SEARCH_BREADTH, count))
            cosines, numbers = self._index.search(normalize_vectors(vectors), count, params=params)
        return numbers, cosines


def quantize_to_eight_bits(vectors: Array) -> Array:
    """Return vectors of the shape (..., width) as int8, each scaled so that its largest number is 127 or -127.

    Scaling keeps the cosines, apart from rounding.
    """
    import numpy as np

    largest = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), 1e-12)
    return np.round(vectors * (127 / largest)).astype(np.int8)  # type: ignore[no-any-return]


def normalize_vectors(vectors: Array) -> Array:
    """Return the vectors as float32, scaled to length 1. A vector of zeros stays unchanged."""
    import numpy as np

    floats = np.ascontiguousarray(vectors, dtype=np.float32)
    return floats / np.maximum(np.linalg.norm(floats, axis=-1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtra("faiss-cpu", "expander") from None
    return faiss
