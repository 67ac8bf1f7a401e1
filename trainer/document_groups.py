"""Groups of queries that share relevant documents, and a choice of whole groups for a held-out split."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from querylift.plugin.errors import SettingsError
from querylift.trainer.document_leaks import RelevantDocuments


def group_queries_by_document(relevant: RelevantDocuments) -> list[list[str]]:
    """Return the connected components of queries and documents, as sorted query ids.

    Two queries are in one group when they share a document, or when a chain of such queries leads from one to the other.
    """
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    query_ids = sorted(relevant)
    numbers = {doc_id: number for number, doc_id in enumerate({d for doc_ids in relevant.values() for d in doc_ids})}
    edges = [(row, len(query_ids) + numbers[d]) for row, query_id in enumerate(query_ids) for d in relevant[query_id]]
    rows, columns = np.array(edges, dtype=int).reshape(-1, 2).T
    size = len(query_ids) + len(numbers)
    _, labels = connected_components(
        coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(size, size)), directed=False
    )
    groups: Mapping[int, list[str]] = defaultdict(list)
    for query_id, label in zip(query_ids, labels[: len(query_ids)].tolist(), strict=True):
        groups[label].append(query_id)
    return sorted(groups.values())


def choose_groups(groups: Sequence[Sequence[str]], count: int, *, seed: int) -> list[str]:
    """Return the query ids of random whole groups that have `count` queries together, or as nearly as possible.

    At least one group is left. Raises SettingsError when the nearest number is less than half of `count`, or more than twice.
    """
    order = list(groups)
    random.Random(seed).shuffle(order)
    sizes = [len(group) for group in order]
    reachable_sums = _list_reachable_sums(sizes, limit=min(count + max(sizes), sum(sizes) - 1))
    choices = [total for total in range(1, reachable_sums[-1].bit_length()) if reachable_sums[-1] >> total & 1]
    nearest = min(choices, key=lambda total: (abs(total - count), total), default=0)
    if not count <= 2 * nearest <= 4 * count:
        _raise_on_large_group(count, nearest, sizes)
    chosen: list[str] = []
    remaining = nearest
    # A group is chosen when the groups before it can make up the remainder.
    for group, sums_before in zip(reversed(order), reversed(reachable_sums[:-1]), strict=True):
        if len(group) <= remaining and sums_before >> (remaining - len(group)) & 1:
            chosen += group
            remaining -= len(group)
    return sorted(chosen)


def _list_reachable_sums(sizes: Sequence[int], *, limit: int) -> list[int]:
    """Return the sums of subsets of the first 0, 1, 2, ... sizes. Bit N of a number is set when the sum N can be made."""
    mask = (1 << (limit + 1)) - 1
    sums = [1]
    for size in sizes:
        sums.append((sums[-1] | sums[-1] << size) & mask)
    return sums


def _raise_on_large_group(count: int, nearest: int, sizes: Sequence[int]) -> None:
    remedy = f"set --hold-out to {nearest}, or use --by query" if nearest else "use --by query"
    raise SettingsError(
        f"--hold-out is {count}, and shared relevant documents connect {max(sizes)} of {sum(sizes)} queries, which must "
        f"stay together; {remedy}"
    )
