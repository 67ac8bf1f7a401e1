"""Queries that nobody asked, out of an index's own texts (inverse cloze, arXiv 1906.00300), and what to answer to them.

The answer is what the form `neighbours` would give: the terms of the nearest documents, by their similarity. So the matrix learns
that function, which needs no judgments, and keeps no documents.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from querylift.index_tools.fast_expander.term_matrix import Documents
from querylift.plugin.fast_expander.document_vectors import Vectors

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

    from querylift.plugin.fast_expander.encoder import Encoder
    from querylift.plugin.fast_expander.vocabulary import Array

_SENTENCE = re.compile(r"(?<=[.!?。！？])\s*")
_WORD = re.compile(r"\w+")
_MAX_WORDS = 40
_SPAN = (3, 8)
_WORDS = (2, 6)


def pseudo_queries(text: str, *, count: int, draw: random.Random) -> list[str]:
    """At most `count` of: its beginning, two of its sentences, some words in a row, some words from anywhere."""
    words = text.split()
    sentences = [one for one in _SENTENCE.split(text) if _SPAN[0] <= len(one.split()) <= _MAX_WORDS]
    found = [
        " ".join(words[:12]),
        *draw.sample(sentences, min(2, len(sentences))),
        _span(words, draw),
        _some(text, draw),
    ]
    distinct = [one for one in dict.fromkeys(found) if one]
    draw.shuffle(distinct)
    return distinct[:count]


def _span(words: list[str], draw: random.Random) -> str:
    count = draw.randint(*_SPAN)
    start = draw.randint(0, max(0, len(words) - count))
    return " ".join(words[start : start + count])


def _some(text: str, draw: random.Random) -> str:
    words = [word for word in _WORD.findall(text) if len(word) > 3]
    return " ".join(draw.sample(words, min(len(words), draw.randint(*_WORDS))))


def encoded(encoder: Encoder, texts: Iterable[str], *, threads: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The vectors of queries: shape (texts, width)."""
    import numpy as np

    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(encoder.query, texts)))


class Answers:
    """What the nearest documents say to a query, as a distribution over the terms."""

    def __init__(self, documents: Documents, *, neighbours: int, temperature: float) -> None:
        import numpy as np
        from scipy.sparse import csr_matrix

        self._neighbours = min(neighbours, len(documents.ends))
        self._temperature = temperature
        ends = np.concatenate([[0], documents.ends])
        shape = (len(documents.ends), documents.count)
        self._terms = csr_matrix((documents.weights, documents.terms, ends), shape=shape)
        self._own = normalised(self._terms)
        self._vectors = Vectors.new(documents.vectors)
        self._vectors.add(documents.vectors)

    def to(self, vectors: Array) -> csr_matrix:
        """Rows of shape (queries, terms) that each sum to 1, or to 0 where no document near has a term."""
        import numpy as np
        from scipy.sparse import csr_matrix

        keys, cosines = self._vectors.nearest(vectors, self._neighbours)
        shares = np.exp((cosines - cosines[:, :1]) / self._temperature)
        rows = np.arange(0, keys.size + 1, keys.shape[1])
        return normalised(
            csr_matrix((shares.ravel(), keys.ravel(), rows), shape=(len(keys), self._terms.shape[0])) @ self._terms
        )

    def of_documents(self, numbers: Sequence[int]) -> csr_matrix:
        """What documents, given by number, say themselves, each as much: one row."""
        import numpy as np
        from scipy.sparse import csr_matrix

        picked = csr_matrix((np.ones(len(numbers)), numbers, [0, len(numbers)]), shape=(1, self._terms.shape[0]))
        return normalised(picked @ self._own)


def normalised(rows: csr_matrix) -> csr_matrix:
    """Rows that each sum to 1; an empty one stays empty."""
    import numpy as np
    from scipy.sparse import csr_matrix, diags

    sums = np.asarray(rows.sum(axis=1)).ravel()
    return csr_matrix(diags(np.divide(1, sums, out=np.zeros_like(sums, dtype=float), where=sums > 0)) @ rows)


def batches(count: int, size: int, draw: Any) -> Iterator[Array]:
    """Every number below `count` once, in an order of its own, `size` at a time."""
    order = draw.permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]
