"""The records of a results table: what was measured, by collection, row and seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from querylift.index_tools.evaluation.comparison import Comparison
from querylift.index_tools.evaluation.experiment import Task
from querylift.index_tools.evaluation.measures import calculate_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """One run: a row on a collection with one seed. `per_query` is nDCG@10 by query id.

    `outcomes` counts the outcomes of the measured queries. `unexpanded` counts the queries that were sent unchanged.
    `refusals` holds the engine's reason for each search that it refused, by query id. Such a query counts 0.
    """

    per_query: Mapping[str, float] = field(repr=False)
    recall_at_100: float
    generator: str = ""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    unexpanded: int = 0
    refusals: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What one row of the table measured on one collection, over all its seeds.

    The shares compare it with the teacher's row, and are None when there is no teacher. The plain row, which searches
    without expansion, has no comparison.
    """

    seeds: tuple[SeedResult, ...]
    per_query: Mapping[str, float] = field(repr=False)
    """nDCG@10 by query id, the mean over seeds."""
    share_kept: float | None
    """nDCG@10 over the nDCG@10 of the teacher."""
    gain_kept: float | None
    """The gain over the plain row, over the gain of the teacher. None also when the teacher gains nothing."""
    against_plain: Comparison | None
    against_above: Comparison | None
    above: str
    """The name of the row that `against_above` compares with, and "" when there is none."""

    @property
    def ndcg_at_10(self) -> float:
        """The mean over queries and seeds."""
        return calculate_mean(self.per_query.values())

    @property
    def recall_at_100(self) -> float:
        """The mean over queries and seeds."""
        return calculate_mean(seed.recall_at_100 for seed in self.seeds)

    @property
    def ndcg_by_seed(self) -> tuple[float, ...]:
        """nDCG@10 of every seed."""
        return tuple(calculate_mean(seed.per_query.values()) for seed in self.seeds)

    @property
    def deviation(self) -> float | None:
        """The standard deviation of nDCG@10 over seeds (n - 1 in the divisor), and None for one seed."""
        return statistics.stdev(self.ndcg_by_seed) if len(self.seeds) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionResult:
    """One collection. `rows` holds the results by the name of the row. Rows without a result here are left out."""

    name: str
    task: Task = field(repr=False)
    query_count: int
    mode: str
    rows: Mapping[str, RowResult]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that is printed. `row_weights` holds the weight of each row that expands."""

    row_names: tuple[str, ...]
    collections: tuple[CollectionResult, ...]
    engine: str
    date: str
    weight: float
    row_weights: Mapping[str, float]
    teacher: str | None = None
    notes: tuple[str, ...] = ()
