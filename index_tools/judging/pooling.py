"""Pooling: the documents that are graded are the first ones of several runs, as in TREC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DEFAULT_POOL_DEPTH = 10
"""How many first documents of each run are pooled."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The documents to grade by query. `system_counts` says how many pairs each system gave to the pool."""

    doc_ids: Mapping[str, Sequence[str]]
    system_counts: Mapping[str, int]

    @property
    def pair_count(self) -> int:
        """The number of pairs of a query and a document."""
        return sum(map(len, self.doc_ids.values()))


def pool_runs(runs: Mapping[str, Mapping[str, Sequence[str]]], *, depth: int = DEFAULT_POOL_DEPTH) -> Pool:
    """Return the first `depth` documents of each run, each document once for a query. `runs` are the runs by system.

    A document keeps the place of the first system that returned it. A query without a document in any run is left out.
    """
    doc_ids: dict[str, dict[str, None]] = {}
    system_counts = dict.fromkeys(runs, 0)
    for system, run in runs.items():
        for query_id, ranking in run.items():
            first_ids = dict.fromkeys(ranking[:depth])
            system_counts[system] += len(first_ids)
            if first_ids:
                doc_ids.setdefault(query_id, {}).update(first_ids)
    return Pool({query_id: tuple(ids) for query_id, ids in doc_ids.items()}, system_counts)
