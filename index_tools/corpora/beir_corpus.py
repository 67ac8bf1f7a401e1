"""A corpus in a folder in BEIR's layout.

The folder holds `corpus.jsonl`, `queries[.SPLIT].jsonl`, and `qrels[.SPLIT].tsv` or `qrels/SPLIT.tsv`. Any of them may
be gzipped (`.gz`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.document_files import iter_documents_of_files
from querylift.index_tools.corpora.records import Document
from querylift.index_tools.corpora.split_files import find_split_files, locate_split_qrels, pair_split_files
from querylift.plugin.errors import SettingsError
from querylift.plugin.text_files import read_whole_text

CORPUS_ABOUT_FILE = "about.json"
"""States the language and the lowest relevant grade, such as {"language": "zh", "relevant_from": 2}. Both are optional."""


def is_beir_folder(folder: Path) -> bool:
    """Return whether the folder holds documents or queries under BEIR's file names."""
    return _find_documents_file(folder) is not None or any(folder.glob("queries*.jsonl*"))


def open_beir_corpus(path: str) -> Corpus:
    """Open a folder in BEIR's layout. Raise SettingsError when it holds neither documents nor queries."""
    folder = Path(path)
    if not folder.is_dir():
        raise SettingsError(f"{path!r} has no corpus.jsonl; name a folder in BEIR's layout")
    topics = find_split_files(folder.iterdir(), r"queries(\.(?P<split>.+?))?\.jsonl(\.gz)?")
    has_documents = _find_documents_file(folder) is not None
    if not topics and not has_documents:
        raise SettingsError(f"{path!r} has no corpus.jsonl; name a folder in BEIR's layout")
    qrels = _find_qrels_files(folder)
    splits = pair_split_files(topics, qrels)
    facts = _read_about_file(folder / CORPUS_ABOUT_FILE)
    reader = partial(_iter_documents, folder)
    paths = locate_split_qrels(topics, qrels)
    return Corpus(folder.resolve().name, reader, splits, has_documents=has_documents, qrels_paths=paths, **facts)


def _iter_documents(folder: Path) -> Iterator[Document]:
    """Stream the documents. They may be missing, because measuring an existing index needs only queries and judgments."""
    path = _find_documents_file(folder)
    if path is None:
        raise SettingsError(f"{str(folder)!r} has no corpus.jsonl, which indexing needs; add that file")
    yield from iter_documents_of_files(path)


def _find_documents_file(folder: Path) -> Path | None:
    return next((path for path in (folder / "corpus.jsonl", folder / "corpus.jsonl.gz") if path.is_file()), None)


def _find_qrels_files(folder: Path) -> dict[str, Path]:
    subfolder = folder / "qrels"
    beside = find_split_files(folder.iterdir(), r"qrels(\.(?P<split>.+?))?\.tsv(\.gz)?")
    inside = find_split_files(subfolder.iterdir() if subfolder.is_dir() else (), r"(?P<split>.+?)\.tsv(\.gz)?")
    for name in beside.keys() & inside.keys():
        raise SettingsError(f"{str(beside[name])!r} and {str(inside[name])!r} are files of one split; keep one of them")
    return beside | inside


def _read_about_file(path: Path) -> dict[str, Any]:
    """Return the values of `language` and `relevant_from` in the file, {} when there is no file."""
    if not path.is_file():
        return {}
    try:
        facts = json.loads(read_whole_text(path))
    except ValueError as error:
        raise SettingsError(f"{path} cannot be read as JSON ({error}); correct it, or remove it") from None
    types = {"language": str, "relevant_from": int}
    if not isinstance(facts, dict) or any(types.get(name) is not type(value) for name, value in facts.items()):
        raise SettingsError(
            f'{path} must look like {{"language": "en", "relevant_from": 1}}; either value may be left out'
        )
    if facts.get("relevant_from", 1) < 1:
        raise SettingsError(
            f"relevant_from is {facts['relevant_from']} in {path}; give the lowest relevant grade, 1 or more"
        )
    return facts
