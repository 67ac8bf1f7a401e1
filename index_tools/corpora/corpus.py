"""The record of a corpus: documents, and judged queries in splits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from querylift.index_tools.corpora.records import Document, Qrels, Queries
from querylift.plugin.errors import SettingsError

UNNAMED_SPLIT = "all"
"""The name of the only split of a corpus whose queries are not split."""

JudgedQueries: TypeAlias = "tuple[Queries, Qrels]"


@dataclass(frozen=True)
class Corpus:
    """Documents, and queries about them in splits. Every call reads the files again, and nothing is kept in memory."""

    name: str
    document_reader: Callable[[], Iterator[Document]] = field(repr=False)
    split_readers: Mapping[str, Callable[[], JudgedQueries]] = field(repr=False)
    language: str = "en"
    """The language of the documents. It chooses the engine's analyzer: 'zh' means `cjk`."""
    relevant_from: int = 1
    """The lowest grade that counts as relevant, for measures that know only relevant and not relevant."""
    has_documents: bool = True
    """False when there are only queries and judgments, which suffice to measure an index that exists."""
    document_finder: Callable[[Collection[str]], Iterator[Document]] | None = field(default=None, repr=False)
    """Finds documents by their ids, where that is quicker than reading all of them."""
    qrels_paths: Mapping[str, Path] = field(default_factory=dict, repr=False)
    """The file of judgments of each split that has one. A model's judgments are told by what lies beside the file."""

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names of the splits. The tuple is empty when the corpus has no queries."""
        return tuple(self.split_readers)

    def iter_documents(self) -> Iterator[Document]:
        """Stream all documents, empty ones too. A broken line raises DataError when the stream reaches it."""
        return self.document_reader()

    def find_documents(self, doc_ids: Collection[str]) -> Iterator[Document]:
        """Stream those documents whose id is one of `doc_ids`. Ids that the corpus lacks are left out."""
        if self.document_finder is not None:
            return self.document_finder(doc_ids)
        return (document for document in self.document_reader() if document.doc_id in doc_ids)

    def read_queries(self, split: str | None = None) -> Queries:
        """Return the queries of a split, judged or not. None means the only split.

        Raise SettingsError when there is no such split.
        """
        return self._read_judged_queries(split)[0]

    def read_qrels(self, split: str | None = None) -> Qrels:
        """Return the judgments of a split's queries, `split` as in `read_queries`. They may be empty."""
        return self._read_judged_queries(split)[1]

    def _read_judged_queries(self, split: str | None) -> JudgedQueries:
        names = self.split_names
        if not names:
            raise SettingsError(f"{self.name!r} has no queries; name a corpus that has some")
        if split is None and len(names) > 1:
            raise SettingsError(f"{self.name!r} has several splits: {', '.join(names)}; name one of them")
        name = names[0] if split is None else split
        if name not in self.split_readers:
            raise SettingsError(f"{self.name!r} has no split {name!r}; its splits are {', '.join(names)}")
        return self.split_readers[name]()
