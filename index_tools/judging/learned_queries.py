"""The queries that a judge learned from. On them it agrees with its teacher better than on others, so results rest on others.

A judge's record holds a digest of each query and not its words, because a query log may be private.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import click

from querylift.index_tools.judging.grade_source import OpenedJudge
from querylift.plugin.expansion import fold_query
from querylift.plugin.proxy.query_records.record import hash_query


def compute_query_digests(queries: Iterable[str]) -> tuple[str, ...]:
    """Return the digest of each different query, in a fixed order. Letter case and spaces do not count."""
    return tuple(sorted({hash_query(fold_query(query)) for query in queries}))


def count_learned_queries(digests: Collection[str], queries: Iterable[str]) -> int:
    """Return how many of `queries` are among those with these digests. Equal queries count once."""
    return len(set(digests).intersection(compute_query_digests(queries)))


def describe_learned_queries(digests: Collection[str], queries: Collection[str]) -> str:
    """Return a sentence that warns of queries that the judge learned from, or "" when there are none."""
    count = count_learned_queries(digests, queries)
    if not count:
        return ""
    return (
        f"the judge learned from {count} of these {len(queries)} queries; it grades them better than others, "
        "so measure on queries that it never saw"
    )


def warn_about_learned_queries(judge: OpenedJudge, queries: Collection[str]) -> None:
    """Print the warning of `describe_learned_queries` to standard error, if there is one."""
    if warning := describe_learned_queries(judge.learned_queries, queries):
        click.echo(f"warning: {warning}", err=True)
