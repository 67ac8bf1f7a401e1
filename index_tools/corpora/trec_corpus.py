"""A corpus in TREC files: in one folder, or named one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.document_files import iter_documents_of_files
from querylift.index_tools.corpora.records import Document
from querylift.index_tools.corpora.split_files import find_split_files, locate_split_qrels, pair_split_files
from querylift.plugin.errors import SettingsError

_ROLE = re.compile(r"(?:documents|topics|qrels)=")


def open_trec_corpus(location: str) -> Corpus:
    """Open FOLDER, or `documents=FILE,topics=FILE,qrels=FILE`. Documents or topics may be missing, but not both."""
    return _make_corpus_of_files(location) if _ROLE.match(location) else _open_folder(Path(location))


def _open_folder(folder: Path) -> Corpus:
    """Open a folder with `documents.*`, `topics[.SPLIT].*` and `qrels[.SPLIT].*`.

    Several `documents.*` files are read as one corpus.
    """
    if not folder.is_dir():
        raise SettingsError(f"{str(folder)!r} is not a folder; name one that holds documents.*, topics.* and qrels.*")
    documents = sorted(path for path in folder.iterdir() if path.name.startswith("documents."))
    topics, qrels = (
        find_split_files(folder.iterdir(), rf"{role}(\.(?P<split>.+?))??(\.[^.]+)?(\.gz)?")
        for role in ("topics", "qrels")
    )
    if not documents and not topics:
        raise SettingsError(
            f"{str(folder)!r} has no documents.* and no topics.*; call its files documents.trec, topics.txt and qrels.txt"
        )
    return _make_corpus(folder.resolve().name, documents, topics, qrels, source=str(folder))


def _make_corpus_of_files(location: str) -> Corpus:
    parts = re.split(rf",(?={_ROLE.pattern})", location)
    files = {role: Path(path) for role, path in (part.split("=", 1) for part in parts)}
    if "documents" not in files and "topics" not in files:
        raise SettingsError(
            f"'trec:{location}' has no documents and no topics; write 'trec:documents=FILE,topics=FILE,qrels=FILE'"
        )
    documents = [files["documents"]] if "documents" in files else []
    topics, qrels = ({"": files[role]} if role in files else {} for role in ("topics", "qrels"))
    name = (documents[0] if documents else files["topics"]).name.split(".")[0]
    return _make_corpus(name, documents, topics, qrels, source=f"trec:{location}")


def _make_corpus(
    name: str, documents: Sequence[Path], topics: Mapping[str, Path], qrels: Mapping[str, Path], *, source: str
) -> Corpus:
    reader = partial(_iter_documents, documents, source)
    return Corpus(
        name,
        reader,
        pair_split_files(topics, qrels),
        has_documents=bool(documents),
        qrels_paths=locate_split_qrels(topics, qrels),
    )


def _iter_documents(documents: Sequence[Path], source: str) -> Iterator[Document]:
    """Stream the documents. They may be missing, because measuring an existing index needs only queries and judgments."""
    if not documents:
        raise SettingsError(f"{source!r} has no documents, which indexing needs; add a file of documents")
    yield from iter_documents_of_files(*documents)
