"""Describes the index that an expander is built from, as `expander.json` keeps it, and finds what has changed since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.document_selection import EVERYTHING, DocumentSelection
from querylift.index_tools.fast_expander.index_fields import AnalysedFields, find_analyzer, read_mappings
from querylift.index_tools.fast_expander.surface_words import SurfaceWords
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.expander_folder import FieldGroup, SourceIndex, read_expander_record
from querylift.plugin.fast_expander.vocabulary import Word

_PROBE_WORDS = 64


def describe_source(
    engine: Engine,
    index: str,
    fields: AnalysedFields,
    groups: Sequence[FieldGroup],
    *,
    documents: int,
    in_index: int,
    changed_field: str = "",
    changed_until: str | float = "",
    selection: DocumentSelection = EVERYTHING,
) -> SourceIndex:
    """Return the record of the index. `groups` belong to the groups of `fields`. `selection` is what was read."""
    return SourceIndex(
        index=index,
        indices=fields.indices,
        aliases=fields.aliases,
        uuids=fields.uuids,
        field=fields.names[0],
        documents=documents,
        in_index=in_index,
        engine=str(engine.read_info()),
        probe=groups[0].probe,
        changed_field=changed_field,
        changed_until=changed_until,
        groups=tuple(groups) if len(fields.names) > 1 else (),
        sample=selection.sample,
        slice=selection.slice_name,
    )


def create_field_groups(
    fields: AnalysedFields, surfaces_by_group: Sequence[SurfaceWords], words_by_group: Sequence[Sequence[Word]]
) -> list[FieldGroup]:
    """Return each group of fields, with a sample of its words and the terms that the analyzer makes of them."""
    groups = []
    for names, surfaces, words in zip(fields.groups, surfaces_by_group, words_by_group, strict=True):
        usable_words = [word.surface for word in words if word.surface]
        sample = usable_words[:: max(1, len(usable_words) // _PROBE_WORDS)][:_PROBE_WORDS]
        groups.append(FieldGroup(names=names, terms=len(words), probe=surfaces.analyze_words(sample)))
    return groups


def is_analyzed_as_before(source: SourceIndex, surfaces_by_group: Sequence[SurfaceWords]) -> bool:
    """Whether the analyzers make the same terms of the words of the probes as they did for the record."""
    probes = [group.probe for group in source.list_groups(terms=0)]
    return all(
        surfaces.analyze_words(list(probe)) == probe for surfaces, probe in zip(surfaces_by_group, probes, strict=True)
    )


def compute_analysis_digest(engine: Engine, index: str, fields: AnalysedFields) -> str:
    """Return 16 hex digits that change when an analyzer of the fields changes.

    The names of the indices do not count: an alias may gain an index that is like the others.
    """
    mappings = read_mappings(engine, index)
    settings = engine.call("GET", f"/{index}/_settings")
    analyses = [
        [
            *(find_analyzer(mappings[name], field) for field in fields.names),
            settings[name]["settings"]["index"].get("analysis"),
        ]
        for name in fields.indices
    ]
    distinct_analyses = sorted({json.dumps(analysis, sort_keys=True) for analysis in analyses})
    return hashlib.sha256(json.dumps(distinct_analyses).encode()).hexdigest()[:16]


def create_change_query(folder: Path, changed_field: str) -> Mapping[str, Any] | None:
    """Return the query for what has changed since the last build, and None when everything must be read."""
    if not changed_field:
        return None
    try:
        source = read_expander_record(folder).source
    except SettingsError:
        return None
    if source.changed_field != changed_field or source.changed_until == "":
        return None
    return {"range": {changed_field: {"gte": source.changed_until}}}


def find_latest_change(engine: Engine, index: str, changed_field: str) -> str | float:
    """Return the largest value of the field of changes, and "" when no field is named. Raises SettingsError."""
    if not changed_field:
        return ""
    body = {"size": 0, "aggs": {"until": {"max": {"field": changed_field}}}}
    maximum = engine.call("POST", f"/{index}/_search", body)["aggregations"]["until"]
    if maximum["value"] is None:
        raise SettingsError(
            f"--changed-since is {changed_field!r}: no document of {index} has a date or a number "
            "there; name another field"
        )
    return maximum.get("value_as_string", float(maximum["value"]))  # type: ignore[no-any-return]
