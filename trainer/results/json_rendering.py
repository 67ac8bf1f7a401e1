"""The results as JSON, for a program."""

from __future__ import annotations

from typing import Any

from querylift.index_tools.evaluation.comparison import Comparison
from querylift.trainer.results.records import CollectionResult, Results, RowResult


def results_to_json(results: Results) -> dict[str, Any]:
    """Return all numbers. A collection lists only the rows that have a result on it."""
    return {
        "engine": results.engine,
        "date": results.date,
        "weight": results.weight,
        "teacher": results.teacher,
        "rows": list(results.row_names),
        "collections": [_collection_to_json(collection, results) for collection in results.collections],
        "notes": list(results.notes),
    }


def _collection_to_json(collection: CollectionResult, results: Results) -> dict[str, Any]:
    return {
        "name": collection.name,
        "corpus": collection.task.corpus,
        "split": collection.task.split,
        "index": collection.task.index,
        "mode": collection.mode,
        "relevant_from": collection.task.relevant_from,
        "queries": collection.query_count,
        "rows": [_row_to_json(name, row, results.row_weights.get(name)) for name, row in collection.rows.items()],
        "notes": list(collection.notes),
    }


def _row_to_json(name: str, result: RowResult, weight: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "weight": weight,
        "ndcg_at_10": result.ndcg_at_10,
        "ndcg_at_10_by_seed": list(result.ndcg_by_seed),
        "ndcg_at_10_deviation": result.deviation,
        "recall_at_100": result.recall_at_100,
        "kept": result.share_kept,
        "gain_kept": result.gain_kept,
        "against_plain": _comparison_to_json(result.against_plain),
        "above": result.above or None,
        "against_above": _comparison_to_json(result.against_above),
        "seeds": [
            {"generator": seed.generator, "unexpanded": seed.unexpanded, "outcomes": dict(seed.outcomes)}
            for seed in result.seeds
        ],
    }


def _comparison_to_json(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    return {
        "difference": comparison.difference,
        "p_value": comparison.p_value,
        "corrected_p_value": comparison.deciding_p_value,
        "interval": list(comparison.interval),
        "wins": comparison.wins,
        "ties": comparison.ties,
        "losses": comparison.losses,
    }
