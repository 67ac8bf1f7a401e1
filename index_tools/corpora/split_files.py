"""Find the files of each split in a BEIR or TREC folder, and read a split's queries and judgments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from querylift.index_tools.corpora.corpus import UNNAMED_SPLIT, JudgedQueries
from querylift.index_tools.corpora.records import Queries
from querylift.index_tools.corpora.trec_files import iter_qrels, read_qrels, read_topics
from querylift.plugin.errors import DataError, SettingsError

SIDECAR_SUFFIX = ".judged.jsonl"
"""The end of the name of a file that names the model which judged the file of qrels beside it."""


def find_split_files(paths: Iterable[Path], pattern: str) -> dict[str, Path]:
    """Return the file of each split, by the group `split` of `pattern`; '' is the file that names no split.

    A sidecar of a file of qrels is no file of a split. Raise SettingsError when two files belong to one split.
    """
    files: dict[str, Path] = {}
    for path in sorted(paths):
        match = re.fullmatch(pattern, path.name)
        if match is None or path.name.endswith(SIDECAR_SUFFIX):
            continue
        name = match["split"] or ""
        if name in files:
            raise SettingsError(f"{str(files[name])!r} and {str(path)!r} are files of one split; keep one of them")
        files[name] = path
    return files


def pair_split_files(topics: Mapping[str, Path], qrels: Mapping[str, Path]) -> dict[str, Callable[[], JudgedQueries]]:
    """Return a reader for each split. The file of split '' serves every split that has no file of its own."""
    names = sorted({*topics, *qrels} - {""})
    if "" in topics and ("" in qrels or not names):
        names = ["", *names]
    return {name or UNNAMED_SPLIT: partial(_read_judged_queries, name, topics, qrels) for name in names}


def locate_split_qrels(topics: Mapping[str, Path], qrels: Mapping[str, Path]) -> dict[str, Path]:
    """Return the file of judgments of each split that `pair_split_files` returns and that has one."""
    paths = {name: qrels.get(name) or qrels.get("") for name in pair_split_files(topics, qrels)}
    return {name: path for name, path in paths.items() if path is not None}


def _read_judged_queries(name: str, topics: Mapping[str, Path], qrels: Mapping[str, Path]) -> JudgedQueries:
    own_topics, own_qrels = topics.get(name), qrels.get(name)
    topics_path, qrels_path = own_topics or topics.get(""), own_qrels or qrels.get("")
    if topics_path is None:
        raise SettingsError(f"{str(qrels_path)!r} judges queries that no file holds; add the queries of split {name!r}")
    queries = read_topics(topics_path)
    judgments = read_qrels(qrels_path) if qrels_path else {}
    if own_qrels:
        _check_every_judged_query_has_text(own_qrels, queries, topics_path)
    if own_topics is None:
        queries = {query_id: text for query_id, text in queries.items() if query_id in judgments}
    return queries, {query_id: grades for query_id, grades in judgments.items() if query_id in queries}


def _check_every_judged_query_has_text(qrels_path: Path, queries: Queries, topics_path: Path) -> None:
    """Raise DataError for a judged query without text.

    No search could be made for it, so it would count as a query that found nothing.
    """
    for number, qrel in iter_qrels(qrels_path):
        if qrel.query_id not in queries:
            problem = f"query {qrel.query_id!r} is judged but not in {topics_path}"
            raise DataError(qrels_path, number, f"{problem}; add its text or remove its judgments")
