"""A corpus in TREC files: in one folder, or named one by one."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.document_files import iter_documents_of_files
from querylift.index_tools.corpora.split_files import find_split_files, pair_split_files
from querylift.plugin.errors import SettingsError

_ROLE = re.compile(r"(?:documents|topics|qrels)=")


def open_trec_corpus(location: str) -> Corpus:
    """Open FOLDER, or `documents=FILE,topics=FILE,qrels=FILE` of which only the documents are required."""
    return _make_corpus_of_files(location) if _ROLE.match(location) else _open_folder(Path(location))


def _open_folder(folder: Path) -> Corpus:
    """Open a folder with `documents.*`, `topics[.SPLIT].*` and `qrels[.SPLIT].*`.

    Several `documents.*` files are read as one corpus.
    """
    if not folder.is_dir():
        raise SettingsError(f"{str(folder)!r} is not a folder; name one that holds documents.*, topics.* and qrels.*")
    documents = sorted(path for path in folder.iterdir() if path.name.startswith("documents."))
    if not documents:
        raise SettingsError(f"{str(folder)!r} has no documents.*; call its file documents.trec or documents.jsonl")
    topics, qrels = (
        find_split_files(folder.iterdir(), rf"{role}(\.(?P<split>.+?))??(\.[^.]+)?(\.gz)?")
        for role in ("topics", "qrels")
    )
    reader = partial(iter_documents_of_files, *documents)
    return Corpus(folder.resolve().name, reader, pair_split_files(topics, qrels))


def _make_corpus_of_files(location: str) -> Corpus:
    parts = re.split(rf",(?={_ROLE.pattern})", location)
    files = {role: Path(path) for role, path in (part.split("=", 1) for part in parts)}
    if "documents" not in files:
        raise SettingsError(f"'trec:{location}' has no documents; write 'trec:documents=FILE,topics=FILE,qrels=FILE'")
    topics, qrels = ({"": files[role]} if role in files else {} for role in ("topics", "qrels"))
    reader = partial(iter_documents_of_files, files["documents"])
    return Corpus(files["documents"].name.split(".")[0], reader, pair_split_files(topics, qrels))
