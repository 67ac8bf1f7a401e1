"""Documents' vectors in a file, and the nearest of them to a query's: HNSW (arXiv 1603.09320) over eight-bit codes, by faiss.

The file is read where it lies. Vectors have length 1, so that the inner product is the cosine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from querylift.plugin.errors import MissingExtra, SettingsError

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.vocabulary import Array

CONNECTIVITY, BUILD_BREADTH, SEARCH_BREADTH = 32, 128, 256
"""M and the two ef of HNSW: docs/log.md has what they were chosen by."""


class Vectors:
    """Vectors by number, from 0 in the order in which they were added."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def new(cls, sample: Array) -> Vectors:
        """None yet; `sample` of shape (some, width) says between what numbers they will lie. Raises MissingExtra."""
        faiss = _faiss()
        width = sample.shape[1]
        index = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_8bit, CONNECTIVITY, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_BREADTH
        index.train(unit(sample))
        return cls(index)

    @classmethod
    def read(cls, path: Path, *, width: int) -> Vectors:
        """Those in `path`. Raises SettingsError where there are none of `width`, MissingExtra."""
        faiss = _faiss()
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except Exception as error:  # a RuntimeError with a C++ trace in it
            reason = str(error).strip().rpartition("\n")[2][:200]
            raise SettingsError(f"{path} cannot be read as vectors ({reason}); build the expander again") from None
        if not isinstance(index, faiss.IndexHNSWSQ) or index.d != width:
            raise SettingsError(f"{path} holds no vectors of {width} numbers; build the expander again")
        return cls(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: Array) -> None:
        """More vectors, of shape (some, width), brought to length 1."""
        self._index.add(unit(vectors))

    def write(self, path: Path) -> None:
        """Write what `read` reads."""
        _faiss().write_index(self._index, str(path))

    def nearest(self, vectors: Array, count: int, *, exactly: bool = False) -> tuple[Array, Array]:
        """Numbers of the `count` nearest to each of `vectors` and their cosines, both of shape (vectors, at most `count`).

        `exactly` looks at every vector instead of walking the graph.
        """
        faiss = _faiss()
        wanted = min(count, len(self))
        if exactly:
            cosines, numbers = self._index.storage.search(unit(vectors), wanted)
        else:
            how = faiss.SearchParametersHNSW(efSearch=max(SEARCH_BREADTH, wanted))
            cosines, numbers = self._index.search(unit(vectors), wanted, params=how)
        return numbers, cosines


def in_eight_bits(vectors: Array) -> Array:
    """Vectors of shape (..., width), each scaled so that its largest number is 127: their cosines are what they were."""
    import numpy as np

    largest = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), 1e-12)
    return np.round(vectors * (127 / largest)).astype(np.int8)  # type: ignore[no-any-return]


def unit(vectors: Array) -> Array:
    """Vectors in float32, each of length 1; one of zeros stays so."""
    import numpy as np

    whole = np.ascontiguousarray(vectors, dtype=np.float32)
    return whole / np.maximum(np.linalg.norm(whole, axis=-1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtra("faiss-cpu", "expander") from None
    return faiss
