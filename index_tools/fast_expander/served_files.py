"""The served files of each form, out of the parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.index_tools.fast_expander.document_parts import Part, Parts
from querylift.index_tools.fast_expander.surface_words import Surfaces
from querylift.plugin.fast_expander.document_vectors import Vectors
from querylift.plugin.fast_expander.neighbours import ENDS, TERMS, VECTORS, WEIGHTS
from querylift.plugin.fast_expander.term_filter import is_usable, most_documents
from querylift.plugin.fast_expander.vocabulary import Word, write_vocabulary

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.vocabulary import Array

DOCUMENT_TERMS = 40
"""Terms kept of a document, those with the largest sqrt(tf) x idf: more of them change nothing (docs/log.md)."""
SAMPLE = 20_000
"""Vectors that the eight-bit codes' range is taken from."""
LEAST_DOCUMENTS = 2
"""A term in fewer documents is most often a slip."""


@dataclass(frozen=True, slots=True)
class Written:
    """The names of the files, the terms that they know, the width of a vector."""

    files: tuple[str, ...]
    words: Sequence[Word]
    width: int


class Statistics:
    """Terms of the rows that are kept: in how many documents each is, and the number of each that is usable."""

    def __init__(self, parts: Parts, kept: Sequence[Sequence[int]]) -> None:
        import numpy as np

        documents = Counter[str]()
        self.documents = 0
        for part, rows in zip(parts, kept, strict=True):
            inside = part.places(rows)
            found = np.bincount(part.terms[inside], minlength=len(part.vocabulary))
            documents.update({term: int(count) for term, count in zip(part.vocabulary, found, strict=True) if count})
            self.documents += len(rows)
        most = most_documents(self.documents)
        least = min(LEAST_DOCUMENTS, int(most))
        usable = sorted(term for term, count in documents.items() if least <= count <= most and is_usable(term))
        self.numbers = {term: number for number, term in enumerate(usable)}
        found_in = np.array([documents[term] for term in usable], dtype=np.float64)
        self.idf = np.log(1 + (self.documents - found_in + 0.5) / (found_in + 0.5))

    def document_terms(self, part: Part, rows: Sequence[int]) -> Iterator[tuple[Array, Array]]:
        """For each of `rows`: numbers of its usable terms, the heaviest `DOCUMENT_TERMS`, and sqrt(tf / length) x idf."""
        import numpy as np

        numbers = np.array([self.numbers.get(term, -1) for term in part.vocabulary], dtype=np.int64)
        for row in rows:
            at = part.places([row])
            terms = numbers[part.terms[at]]
            at, terms = at[terms >= 0], terms[terms >= 0]
            weights = np.sqrt(part.counts[at] / max(int(part.lengths[row]), 1)) * self.idf[terms]
            best = np.argsort(-weights, kind="stable")[:DOCUMENT_TERMS]
            yield terms[best].astype(np.uint32), weights[best].astype(np.float16)


def write_neighbours(folder: Path, parts: Parts, kept: Sequence[Sequence[int]], surfaces: Surfaces) -> Written:
    """Vectors and terms of the documents in the `kept` rows of each part."""
    import numpy as np

    statistics = Statistics(parts, kept)
    vectors = Vectors.new(_sample(parts, kept))
    ends: list[int] = []
    terms, weights, end, width = [], [], 0, 0
    for part, rows in zip(parts, kept, strict=True):
        if not rows:
            continue
        width = part.vectors.shape[1]
        vectors.add(part.vectors[rows])
        for numbers, heavy in statistics.document_terms(part, rows):
            terms.append(numbers)
            weights.append(heavy)
            end += len(numbers)
            ends.append(end)
    vectors.write(folder / VECTORS)
    np.save(folder / ENDS, np.array(ends, dtype=np.int64))
    np.save(folder / TERMS, np.concatenate(terms))
    np.save(folder / WEIGHTS, np.concatenate(weights))
    words = named(statistics, parts, surfaces)
    return Written((VECTORS, ENDS, TERMS, WEIGHTS, *write_vocabulary(folder, words)), words, width)


def _sample(parts: Parts, kept: Sequence[Sequence[int]]) -> Array:
    """Vectors of at most `SAMPLE` documents, evenly drawn."""
    import numpy as np

    every = max(1, sum(map(len, kept)) // SAMPLE)
    return np.concatenate([part.vectors[rows[::every]] for part, rows in zip(parts, kept, strict=True) if rows])


def named(statistics: Statistics, parts: Parts, surfaces: Surfaces) -> list[Word]:
    """The usable terms by number, each with its commonest word; "" where the analyzer makes it of none."""
    counted: dict[str, Counter[str]] = {}
    for part in parts:
        for term, (word, count) in part.surfaces.items():
            if term in statistics.numbers:
                counted.setdefault(term, Counter())[word] += count
    alone = [term for term in statistics.numbers if term not in counted]
    itself = {term for term, made in surfaces.made_of(alone).items() if made == (term,)}
    return [
        Word(term, _commonest(counted[term]) if term in counted else term if term in itself else "")
        for term in statistics.numbers
    ]


def _commonest(counted: Counter[str]) -> str:
    return min(counted, key=lambda word: (-counted[word], word))
