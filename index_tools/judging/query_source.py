"""Queries to judge documents for: those of a corpus, judged or not, or those of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from querylift.index_tools.corpora.corpus_names import load_corpus
from querylift.index_tools.corpora.records import Queries
from querylift.index_tools.corpora.trec_files import read_topics
from querylift.plugin.errors import SettingsError


@dataclass(frozen=True, slots=True)
class NamedQueries:
    """The texts of queries by their ids, and the names of their corpus or file and of their split."""

    source: str
    split: str
    queries: Queries


def load_queries(corpus: str | None, *, split: str | None, path: Path | None) -> NamedQueries:
    """Return the queries of a split of the corpus that `corpus` names, or of the file at `path`.

    The file holds TREC topics, id<TAB>text or JSON lines. Raises SettingsError when both or none are given, or when there
    is no query.
    """
    if (corpus is None) == (path is None):
        given = "neither CORPUS nor --queries is given" if corpus is None else "CORPUS and --queries are both given"
        raise SettingsError(f"{given}; give one of the two")
    if path is not None:
        if split is not None:
            raise SettingsError(f"--split is {split!r}, but a file of queries has no splits; leave it out")
        named = NamedQueries(path.name, "", read_topics(path))
    else:
        loaded_corpus = load_corpus(str(corpus))
        queries = loaded_corpus.read_queries(split)
        named = NamedQueries(loaded_corpus.name, split or loaded_corpus.split_names[0], queries)
    if not named.queries:
        raise SettingsError(f"{path or corpus} holds no query; write id<TAB>text on each line, or name other queries")
    return named
