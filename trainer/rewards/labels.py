"""Labels: which documents answer which query. They come from a corpus's judgments or from a judge's file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from querylift.index_tools.corpora.corpus import Corpus
from querylift.index_tools.corpora.trec_files import read_qrels
from querylift.plugin.files import compute_json_digest


@dataclass(frozen=True, slots=True)
class Labels:
    """Graded judgments and the name of their source. Recall counts documents graded `relevant_from` or higher."""

    qrels: Mapping[str, Mapping[str, int]] = field(repr=False)
    source: str
    relevant_from: int = 1

    def select_usable_qrels(self) -> dict[str, dict[str, int]]:
        """Return the judgments of the queries that have a relevant document. No measure is defined for the others."""
        return {
            query_id: dict(grades)
            for query_id, grades in self.qrels.items()
            if any(grade >= self.relevant_from for grade in grades.values())
        }

    def select_queries(self, queries: Mapping[str, str], *, limit: int | None) -> dict[str, str]:
        """Return the queries that have a relevant document, the first `limit` of them."""
        usable_ids = self.select_usable_qrels().keys()
        return dict(islice(((query_id, text) for query_id, text in queries.items() if query_id in usable_ids), limit))

    def restrict_to(self, query_ids: Collection[str]) -> Labels:
        """Return the labels of these queries."""
        return replace(self, qrels={query_id: self.qrels[query_id] for query_id in query_ids if query_id in self.qrels})

    def compute_digest(self) -> str:
        """Return the SHA-256 of the grades. It does not depend on their order."""
        return compute_json_digest([self.qrels, self.relevant_from])


def load_split_labels(corpus: Corpus, split: str, *, prefix: str = "") -> Labels:
    """Return the judgments of a split of `corpus`.

    `prefix` is put before every query id, so that the ids match those of the candidates.
    """
    qrels = {prefix + query_id: grades for query_id, grades in corpus.read_qrels(split).items()}
    return Labels(qrels, f"{corpus.name}/{split}", corpus.relevant_from)


def read_labels(path: Path, *, relevant_from: int = 1, prefix: str = "") -> Labels:
    """Read a judge's labels from a file of TREC or BEIR qrels.

    `prefix` is put before every query id that does not begin with it, so that the ids match those of the candidates.
    """
    qrels = {prefix + query_id.removeprefix(prefix): grades for query_id, grades in read_qrels(path).items()}
    return Labels(qrels, path.name, relevant_from)
