"""Labels: which documents answer which query, from a corpus's judgments or a judge's file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from querylift.index_tools.corpora.loading import Corpus
from querylift.index_tools.corpora.trec_files import read_qrels


@dataclass(frozen=True, slots=True)
class Labels:
    """Which documents answer which query, and where that is known from. `relevant_from` is the lowest grade recall counts."""

    qrels: Mapping[str, Mapping[str, int]] = field(repr=False)
    source: str
    relevant_from: int = 1

    def usable(self) -> dict[str, dict[str, int]]:
        """The queries that a measure can say something of: those with a relevant document."""
        return {q: dict(g) for q, g in self.qrels.items() if any(grade >= self.relevant_from for grade in g.values())}

    def digest(self) -> str:
        """SHA-256 of the grades, whatever their order."""
        return sha256_of([self.qrels, self.relevant_from])


def labels_of(corpus: Corpus, split: str, *, prefix: str = "") -> Labels:
    """The judgments of a split; `prefix` stands before its query ids in the candidates."""
    qrels = {prefix + query_id: grades for query_id, grades in corpus.qrels(split).items()}
    return Labels(qrels, f"{corpus.name}/{split}", corpus.relevant_from)


def labels_from(path: Path, *, relevant_from: int = 1, prefix: str = "") -> Labels:
    """The labels of a judge: a file of TREC or BEIR qrels, whatever wrote it.

    `prefix` stands before its query ids in the candidates; an id that begins with it already is a candidate's own.
    """
    qrels = {prefix + query_id.removeprefix(prefix): grades for query_id, grades in read_qrels(path).items()}
    return Labels(qrels, path.name, relevant_from)


def sha256_of(value: object) -> str:
    """Of plain JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
