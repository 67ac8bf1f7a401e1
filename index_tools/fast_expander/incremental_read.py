"""Reads an index into parts: only documents whose text is new are encoded, and those that are gone are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.document_parts import Part, Parts
from querylift.index_tools.fast_expander.index_reader import Field, Hit, scan, terms_of
from querylift.index_tools.fast_expander.surface_words import Surfaces
from querylift.plugin.fast_expander.document_vectors import in_eight_bits
from querylift.plugin.fast_expander.encoder import Encoder

_PART_DOCUMENTS = 2000
_TERMS_AT_ONCE = 200
"""Documents of one `_mtermvectors`."""
_IDS_AT_ONCE = 500


class Update:
    """Brings `parts` to what the index holds now; `threads` documents are encoded at once."""

    def __init__(
        self,
        engine: Engine,
        index: str,
        found: Field,
        parts: Parts,
        encoder: Encoder,
        *,
        threads: int,
    ) -> None:
        self._engine = engine
        self._index = index
        self._field = found
        self._parts = parts
        self._encoder = encoder
        self._threads = threads
        self._surfaces = Surfaces(engine, found.indices[0], found.name)
        self._digests: list[Any] = []
        self._rows: dict[str, tuple[int, int]] = {}
        self.encoded = 0
        self.without_text = 0
        self.unreadable = 0

    def run(
        self,
        progress: Callable[[int, int], None],
        *,
        query: Mapping[str, Any] | None = None,
        before: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        """The rows of each part that hold a document as it is now.

        With a `query` for what has changed only that is read, and what is in none of the rows of `before`, those of the
        last build: its date may be older than its place in the index.
        """
        for number, part in enumerate(self._parts):
            self._remember(number, part, range(len(part.keys)) if before is None else before[number])
        alive = set[str]()

        def changed() -> Iterator[list[Hit]]:
            total, read = self._engine.count(self._index), 0
            for hits in scan(self._engine, self._index, sources=self._field.sources, query=query):
                read += len(hits)
                alive.update(hit.key for hit in hits)
                yield hits
                progress(read, total)

        self._take(changed())
        if query is not None:  # the others are as they were, but some may be gone
            missed: list[Hit] = []
            for hits in scan(self._engine, self._index, sources=()):
                missed += [hit for hit in hits if hit.key not in alive and hit.key not in self._rows]
                alive.update(hit.key for hit in hits)
            self._take(self._read(missed))
        kept: list[list[int]] = [[] for _ in self._digests]
        for key, (number, row) in self._rows.items():
            if key in alive:
                kept[number].append(row)
        return kept if any(kept) else []

    def _take(self, scanned: Iterable[list[Hit]]) -> None:
        """Put what is new of the documents into parts."""
        new = _Batches(_PART_DOCUMENTS)
        for hits in scanned:
            for batch in new.add([hit for hit in hits if self._is_new(hit)]):
                self._write(batch)
        for batch in new.rest():
            self._write(batch)

    def _read(self, missed: Sequence[Hit]) -> Iterator[list[Hit]]:
        """The documents of hits without a text, with theirs."""
        rest, wanted = iter(missed), {hit.key for hit in missed}
        while batch := list(islice(rest, _IDS_AT_ONCE)):
            query = {"ids": {"values": [hit.doc_id for hit in batch]}}
            for hits in scan(self._engine, self._index, sources=self._field.sources, query=query):
                found = [hit for hit in hits if hit.key in wanted]  # the same id may stand in several indices
                wanted.difference_update(hit.key for hit in found)
                yield found

    def _is_new(self, hit: Hit) -> bool:
        if not hit.text:
            self.without_text += 1
            self._rows.pop(hit.key, None)
            return False
        number, row = self._rows.get(hit.key, (None, 0))
        return number is None or int(self._digests[number][row]) != _digest(hit.text)

    def _write(self, hits: Sequence[Hit]) -> None:
        part = self._part(hits)
        self._parts.write(part)
        self._remember(len(self._digests), part, range(len(part.keys)))
        self.encoded += len(hits)

    def _remember(self, number: int, part: Part, rows: Sequence[int]) -> None:
        self._digests.append(part.digests)
        self._rows.update({part.keys[row]: (number, row) for row in rows})

    def _part(self, hits: Sequence[Hit]) -> Part:
        import numpy as np

        with ThreadPoolExecutor(self._threads) as pool:
            whole = np.stack(list(pool.map(lambda hit: self._encoder.document(hit.text), hits)))
        self.unreadable += len(hits) - int(whole.any(axis=1).sum())
        numbers: dict[str, int] = {}
        terms: list[int] = []
        counts: list[int] = []
        ends, lengths = [], []
        for counted in self._terms(hits):
            terms.extend(numbers.setdefault(term, len(numbers)) for term in counted)
            counts.extend(counted.values())
            ends.append(len(terms))
            lengths.append(sum(counted.values()))
        return Part(
            [hit.key for hit in hits],
            np.array([_digest(hit.text) for hit in hits], dtype=np.uint64),
            in_eight_bits(whole),
            np.array(ends, dtype=np.int64),
            np.array(terms, dtype=np.uint32),
            np.minimum(np.array(counts, dtype=np.int64), 65535).astype(np.uint16),
            np.array(lengths, dtype=np.uint32),
            list(numbers),
            self._surfaces.count(hit.text for hit in hits),
        )

    def _terms(self, hits: Sequence[Hit]) -> Iterator[dict[str, int]]:
        rest = iter(hits)
        while batch := list(islice(rest, _TERMS_AT_ONCE)):
            yield from terms_of(self._engine, batch, self._field)


class _Batches:
    """Cuts what comes in pieces into batches of `size`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: list[Hit] = []

    def add(self, hits: Sequence[Hit]) -> Iterator[list[Hit]]:
        self._waiting.extend(hits)
        while len(self._waiting) >= self._size:
            yield self._waiting[: self._size]
            self._waiting = self._waiting[self._size :]

    def rest(self) -> Iterator[list[Hit]]:
        if self._waiting:
            yield self._waiting
        self._waiting = []


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
