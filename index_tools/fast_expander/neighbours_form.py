"""Writes the served files of the form `neighbours` out of the parts, and counts terms for both forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from querylift.index_tools.fast_expander.document_parts import DocumentPart, DocumentParts
from querylift.index_tools.fast_expander.surface_words import SurfaceWords
from querylift.plugin.fast_expander.document_vectors import DocumentVectors
from querylift.plugin.fast_expander.mapped_files import write_texts
from querylift.plugin.fast_expander.neighbours_weigher import (
    IDS_NAME,
    TERM_ENDS_FILE,
    TERMS_FILE,
    VECTORS_FILE,
    WEIGHTS_FILE,
)
from querylift.plugin.fast_expander.term_filter import compute_document_limit, is_usable_term
from querylift.plugin.fast_expander.vocabulary import Word, write_vocabulary

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.mapped_files import Array

MAX_DOCUMENT_TERMS = 40
"""A document keeps this many terms, those with the largest sqrt(tf) x idf. More terms change nothing (docs/log.md)."""
SAMPLE_DOCUMENTS = 20_000
"""The number of vectors that set the range of the eight-bit codes."""
MIN_DOCUMENTS = 2
"""A term in fewer documents is most often a spelling mistake."""


@dataclass(frozen=True, slots=True)
class ServedFiles:
    """The names of the files, the words of each group of fields, and the width of a vector."""

    names: tuple[str, ...]
    words: Sequence[Sequence[Word]]
    width: int


class TermStatistics:
    """The usable terms of a group of fields in the current rows: their numbers, and their inverse document frequency."""

    def __init__(self, parts: DocumentParts, current_rows: Sequence[Sequence[int]], *, group: int = 0) -> None:
        import numpy as np

        self._group = group
        document_counts = Counter[str]()
        self.documents = 0
        for part, rows in zip(parts, current_rows, strict=True):
            counted = part.groups[group]
            positions = counted.find_positions(rows)
            counts = np.bincount(counted.terms[positions], minlength=len(counted.vocabulary))
            document_counts.update(
                {term: int(count) for term, count in zip(counted.vocabulary, counts, strict=True) if count}
            )
            self.documents += len(rows)
        most = compute_document_limit(self.documents)
        least = min(MIN_DOCUMENTS, int(most))
        usable = sorted(
            term for term, count in document_counts.items() if least <= count <= most and is_usable_term(term)
        )
        self.numbers = {term: number for number, term in enumerate(usable)}
        """Term to number, in alphabetical order."""
        usable_counts = np.array([document_counts[term] for term in usable], dtype=np.float64)
        self.idf = np.log(1 + (self.documents - usable_counts + 0.5) / (usable_counts + 0.5))

    def weigh_document_terms(self, part: DocumentPart, rows: Sequence[int]) -> Iterator[tuple[Array, Array]]:
        """Yield, for each row, the numbers of its heaviest usable terms and their weights sqrt(tf / length) x idf."""
        import numpy as np

        counted = part.groups[self._group]
        numbers = np.array([self.numbers.get(term, -1) for term in counted.vocabulary], dtype=np.int64)
        for row in rows:
            positions = counted.find_positions([row])
            terms = numbers[counted.terms[positions]]
            positions, terms = positions[terms >= 0], terms[terms >= 0]
            weights = np.sqrt(counted.counts[positions] / max(int(counted.lengths[row]), 1)) * self.idf[terms]
            heaviest = np.argsort(-weights, kind="stable")[:MAX_DOCUMENT_TERMS]
            yield terms[heaviest].astype(np.uint32), weights[heaviest].astype(np.float16)


def write_neighbours_form(
    folder: Path,
    parts: DocumentParts,
    current_rows: Sequence[Sequence[int]],
    surfaces_by_group: Sequence[SurfaceWords],
) -> ServedFiles:
    """Write the vectors, the ids and the terms of the documents in the current rows of each part.

    The terms of the second group have the numbers after those of the first, and so on.
    """
    import numpy as np

    groups = range(len(surfaces_by_group))
    statistics_by_group = [TermStatistics(parts, current_rows, group=group) for group in groups]
    first_numbers = np.cumsum([0, *(len(statistics.numbers) for statistics in statistics_by_group)]).astype(np.uint32)
    vectors = DocumentVectors.create_empty(_sample_vectors(parts, current_rows))
    ends: list[int] = []
    doc_ids: list[str] = []
    terms, weights, end, width = [], [], 0, 0
    for part, rows in zip(parts, current_rows, strict=True):
        if not rows:
            continue
        width = part.vectors.shape[1]
        vectors.add(part.vectors[rows])
        doc_ids += [part.keys[row].partition("/")[2] for row in rows]
        weighted_groups = [statistics.weigh_document_terms(part, rows) for statistics in statistics_by_group]
        for weighted_terms in zip(*weighted_groups, strict=True):
            for first_number, (group_terms, group_weights) in zip(first_numbers, weighted_terms, strict=False):
                terms.append(group_terms + first_number)
                weights.append(group_weights)
                end += len(group_terms)
            ends.append(end)
    vectors.write_file(folder / VECTORS_FILE)
    np.save(folder / TERM_ENDS_FILE, np.array(ends, dtype=np.int64))
    np.save(folder / TERMS_FILE, np.concatenate(terms))
    np.save(folder / WEIGHTS_FILE, np.concatenate(weights))
    words = [
        choose_surface_words(statistics_by_group[group], parts, surfaces_by_group[group], group=group)
        for group in groups
    ]
    text_names = [*write_texts(folder, IDS_NAME, doc_ids), *write_vocabulary(folder, chain(*words))]
    names = (VECTORS_FILE, TERM_ENDS_FILE, TERMS_FILE, WEIGHTS_FILE, *text_names)
    return ServedFiles(names, words, width)


def choose_surface_words(
    statistics: TermStatistics, parts: DocumentParts, surfaces: SurfaceWords, *, group: int = 0
) -> list[Word]:
    """Return the usable terms of a group of fields by number, each with its commonest word.

    A term without a counted word stands for itself if the analyzer makes that term of it. Otherwise its word is "".
    """
    word_counts: dict[str, Counter[str]] = {}
    for part in parts:
        for term, (word, count) in part.groups[group].surfaces.items():
            if term in statistics.numbers:
                word_counts.setdefault(term, Counter())[word] += count
    uncounted = [term for term in statistics.numbers if term not in word_counts]
    surface_words = {term: term for term, terms in surfaces.analyze_words(uncounted).items() if terms == (term,)}
    surface_words |= {term: _find_commonest_word(counts) for term, counts in word_counts.items()}
    return [Word(term, surface_words.get(term, "")) for term in statistics.numbers]


def _find_commonest_word(counts: Counter[str]) -> str:
    """Return the word with the highest count, the first in the alphabet when there are several."""
    return min(counts, key=lambda word: (-counts[word], word))


def _sample_vectors(parts: DocumentParts, current_rows: Sequence[Sequence[int]]) -> Array:
    """Return the vectors of at most `SAMPLE_DOCUMENTS` documents, at even distances."""
    import numpy as np

    step = max(1, sum(map(len, current_rows)) // SAMPLE_DOCUMENTS)
    return np.concatenate([part.vectors[rows[::step]] for part, rows in zip(parts, current_rows, strict=True) if rows])
