"""The corpus that needs no download: the documentation of this interpreter's Python standard library.

Importing the whole standard library has side effects. Therefore a second interpreter collects the documents: it runs
`python_documentation.py` as a script in isolated mode.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

from querylift.index_tools.corpora.records import Document, Qrels, Queries
from querylift.index_tools.corpora.trec_files import read_qrels, read_topics
from querylift.plugin.errors import QueryliftError

_DATA = files("querylift.index_tools.corpora") / "builtin_data"
_COLLECTOR = Path(__file__).with_name("python_documentation.py")
_TIMEOUT_S = 120
"""Collecting takes 1 to 3 s, and longer from a cold disk."""


def iter_documents() -> Iterator[Document]:
    """Stream the documents in a fixed order: modules by name, each before its members, then the language topics.

    `doc_id` is the dotted name, such as `json.loads`. Built-in names stand without a module: `str.split`. A language
    topic is `topic:NAME`. `title` is the name, with its signature when Python knows one. `text` is the docstring and
    never empty. Modules that cannot be imported on this machine are left out.
    Raise QueryliftError when no second interpreter can be run.
    """
    for line in _run_collector().splitlines():
        yield Document(*json.loads(line))


def read_queries() -> Queries:
    """Return the queries. `builtin_data/README.md` says how they were made."""
    with as_file(_DATA / "queries.jsonl") as path:
        return read_topics(path)


def read_all_qrels() -> Qrels:
    """Return all judgments, including those of documents that this Python version does not have."""
    with as_file(_DATA / "qrels.tsv") as path:
        return read_qrels(path)


def read_answerable_qrels() -> Qrels:
    """Return the judgments of the documents that this Python version has. Names come and go from version to version."""
    doc_ids = {document.doc_id for document in iter_documents()}
    return {
        query_id: {doc_id: grade for doc_id, grade in grades.items() if doc_id in doc_ids}
        for query_id, grades in read_all_qrels().items()
    }


def _run_collector() -> str:
    # -I keeps the user's folders and variables out, and -S keeps installed packages out. -W ignore: old modules warn.
    command = [sys.executable, "-I", "-S", "-W", "ignore", str(_COLLECTOR)]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=True, encoding="utf-8"
        )
    except (OSError, subprocess.SubprocessError) as error:
        problem = f"the built-in corpus needs a second Python, and {sys.executable!r} failed ({error})"
        raise QueryliftError(f"{problem}; name another corpus") from error
    return result.stdout
