"""Comparison of the rows of a table: shares of the teacher's result, and paired tests that cover queries and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from querylift.index_tools.evaluation.comparison import TIE_TOLERANCE, Comparison, correct_comparisons
from querylift.index_tools.evaluation.measures import calculate_mean
from querylift.index_tools.evaluation.seed_comparison import compare_seeds
from querylift.trainer.results.records import RowResult, SeedResult
from querylift.trainer.results.table_settings import RowSettings


def compare_rows(
    rows: Sequence[RowSettings], seeds_by_row: Mapping[str, Sequence[SeedResult]], *, teacher: str | None
) -> dict[str, RowResult]:
    """Return the results of every row that has seeds, by the name of the row.

    Each row is compared with the first row, the plain search. It is also compared with the nearest row above that has seeds,
    or with the row that its setting `against` names. `share_kept` is nDCG@10 over that of the teacher. `gain_kept` is
    (row - plain) / (teacher - plain), and None when the teacher gains nothing.
    """
    per_query = {row.name: _average_seeds(seeds_by_row[row.name]) for row in rows if seeds_by_row.get(row.name)}
    means = {name: calculate_mean(values.values()) for name, values in per_query.items()}
    plain = rows[0].name
    teacher_mean = means.get(teacher) if teacher is not None else None
    teacher_gain = teacher_mean - means[plain] if teacher_mean is not None else 0.0
    results: dict[str, RowResult] = {}
    for row in rows:
        if row.name not in per_query:
            continue
        above = "" if row.name == plain else row.against or list(results)[-1]
        against_plain = _compare_with(seeds_by_row, plain, row.name) if above else None
        results[row.name] = RowResult(
            seeds=tuple(seeds_by_row[row.name]),
            per_query=per_query[row.name],
            share_kept=means[row.name] / teacher_mean if teacher_mean else None,
            gain_kept=(means[row.name] - means[plain]) / teacher_gain if teacher_gain > TIE_TOLERANCE else None,
            against_plain=against_plain,
            against_above=against_plain if above == plain else _compare_with(seeds_by_row, above, row.name),
            above=above,
        )
    return results


def correct_over_collections(results: Mapping[str, Mapping[str, RowResult]]) -> dict[str, dict[str, RowResult]]:
    """Return the results by collection and row, with p-values that are corrected for the number of collections of a row.

    The comparisons with the first row are one family of tests, and those with the row above are another.
    """
    corrected = {collection: dict(rows) for collection, rows in results.items()}
    for name in {name: None for rows in results.values() for name in rows}:
        against_plain = _correct_family(results, name, lambda result: result.against_plain)
        against_above = _correct_family(results, name, lambda result: result.against_above)
        for collection, rows in corrected.items():
            if name in rows:
                rows[name] = replace(
                    rows[name],
                    against_plain=against_plain.get(collection),
                    against_above=against_above.get(collection),
                )
    return corrected


def _correct_family(
    results: Mapping[str, Mapping[str, RowResult]], name: str, get_comparison: Callable[[RowResult], Comparison | None]
) -> dict[str, Comparison]:
    """Return the corrected comparisons of the row `name`, by collection."""
    comparisons = {collection: get_comparison(rows[name]) for collection, rows in results.items() if name in rows}
    return correct_comparisons({collection: value for collection, value in comparisons.items() if value is not None})


def _average_seeds(seeds: Sequence[SeedResult]) -> dict[str, float]:
    """Return the mean over seeds for each query."""
    return {query_id: calculate_mean(seed.per_query[query_id] for seed in seeds) for query_id in seeds[0].per_query}


def _compare_with(seeds_by_row: Mapping[str, Sequence[SeedResult]], baseline: str, name: str) -> Comparison | None:
    """Compare the row `name` with the row `baseline`. Returns None when the latter has no result."""
    before = [seed.per_query for seed in seeds_by_row.get(baseline, ())]
    return compare_seeds(before, [seed.per_query for seed in seeds_by_row[name]]) if before else None
