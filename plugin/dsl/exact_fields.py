"""Fields that cannot be analysed text, as far as a search body shows it. A clause on such a field is a filter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from querylift.plugin.dsl.search_checks import iterate_objects

_EXACT_SUBFIELDS = ("keyword", "raw")
"""The names by which a text field's unanalysed copy is known. The engines' own mappings use the first."""
_METADATA_FIELDS = frozenset({"_id", "_index", "_type", "_routing"})


def is_exact_field(name: str, exact_fields: frozenset[str]) -> bool:
    """Whether the field is known to hold whole values. `exact_fields` are those that the body itself shows."""
    _, dot, last_part = name.rpartition(".")
    return name in exact_fields or name in _METADATA_FIELDS or bool(dot and last_part in _EXACT_SUBFIELDS)


def find_exact_fields(body: dict[str, Any]) -> frozenset[str]:
    """Return the fields that the body groups or sorts its hits by. The engines refuse both for analysed text."""
    fields = set(_iterate_sort_fields(body.get("sort")))
    collapse = body.get("collapse")
    if isinstance(collapse, dict) and isinstance(collapse.get("field"), str):
        fields.add(collapse["field"])
    for key in ("aggs", "aggregations"):
        fields.update(_iterate_grouped_fields(body.get(key)))
    return frozenset(fields)


def _iterate_sort_fields(sort: Any) -> Iterator[str]:
    for key in sort if isinstance(sort, list) else [sort]:
        if isinstance(key, str):
            yield key.split(":")[0]
        elif isinstance(key, dict):
            yield from key


def _iterate_grouped_fields(aggregations: Any) -> Iterator[str]:
    """Yield the field of each `terms` aggregation."""
    for aggregation in iterate_objects(aggregations):
        terms = aggregation.get("terms")
        if isinstance(terms, dict) and isinstance(terms.get("field"), str):
            yield terms["field"]
