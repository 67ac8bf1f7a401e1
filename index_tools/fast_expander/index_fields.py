"""Reads the mappings of indices: which fields are analysed, by which analyzer, and which source fields hold their texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from querylift.index_tools.engine import Engine
from querylift.plugin.errors import SettingsError

_TITLE_FIELDS = ("title", "headline", "heading", "subject")


@dataclass(frozen=True, slots=True)
class AnalysedFields:
    """The analysed fields to take terms from, the indices that have them, and the source fields that hold their texts.

    Each of `groups` holds the names of fields that have the same analyzer in every index. So these fields share their
    terms. `unstored_copy` is the field that other fields are copied to and whose term vectors are not stored; "" when
    there is none. The engine cannot give its terms by document id.
    """

    groups: tuple[tuple[str, ...], ...]
    indices: tuple[str, ...]
    aliases: tuple[str, ...]
    uuids: tuple[str, ...]
    sources: tuple[str, ...]
    unstored_copy: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all fields."""
        return tuple(name for group in self.groups for name in group)


def read_mappings(engine: Engine, expression: str) -> dict[str, dict[str, Any]]:
    """Return the properties of each index that `expression` stands for. Raises SettingsError when there is no index."""
    mappings = engine.call("GET", f"/{expression}/_mapping") if engine.has_index(expression) else {}
    if not mappings:  # A pattern exists even when it stands for no index.
        raise SettingsError(f"there is no index {expression} at {engine.url}; name another")
    return {index: mapping["mappings"].get("properties", {}) for index, mapping in mappings.items()}


def find_fields(
    engine: Engine, expression: str, names: Sequence[str], *, sources: Sequence[str] = ()
) -> AnalysedFields:
    """Return the fields `names` of the indices that `expression` stands for, with their source fields.

    `sources` are the fields whose texts are encoded. By default, they are the fields that are copied to a field of `names`.
    If there are none, the field itself is the source, or its parent when it is a sub-field. Titles come first and the
    others follow by name, because an encoder reads only the beginning of a long document.

    Raises SettingsError when an index lacks a field, or does not analyse it.
    """
    mappings = read_mappings(engine, expression)
    default_sources: set[str] = set()
    unstored_copies: list[str] = []
    for name in dict.fromkeys(names):
        for index, properties in mappings.items():
            definition = _check_definition(properties, name, index)
            copied_fields = find_copied_fields(properties, name)
            default_sources.update(copied_fields or [find_source_name(properties, name)])
            if copied_fields and definition.get("term_vector", "no") == "no" and name not in unstored_copies:
                unstored_copies.append(name)
    if unstored_copies and len(set(names)) > 1:
        raise SettingsError(
            f"--field is {', '.join(names)}: {unstored_copies[0]} holds copies of other fields and has no stored term "
            f"vectors; name {unstored_copies[0]} alone, or leave it out"
        )
    settings = engine.call("GET", f"/{expression}/_settings")
    aliases = engine.call("GET", f"/{expression}/_alias")
    return AnalysedFields(
        group_by_analyzer(mappings.values(), names),
        indices=tuple(sorted(mappings)),
        aliases=tuple(sorted({alias for index in aliases.values() for alias in index.get("aliases", {})})),
        uuids=tuple(sorted(index["settings"]["index"]["uuid"] for index in settings.values())),
        sources=tuple(sources) or tuple(sorted(default_sources, key=rank_title_first)),
        unstored_copy="".join(unstored_copies),
    )


def _check_definition(properties: Mapping[str, Any], name: str, index: str) -> dict[str, Any]:
    """Return the definition of an analysed field. Raises SettingsError when the index has none of this name."""
    definition = find_definition(properties, name)
    if definition is None or definition.get("type") != "text":
        problem = "no such field" if definition is None else f"one of type {definition.get('type')}"
        text_fields = sorted(field for field, _, other in walk_fields(properties) if other.get("type") == "text")
        raise SettingsError(
            f"--field is {name!r}: {index} has {problem}; its text fields: {', '.join(text_fields) or 'none'}"
        )
    return definition


def group_by_analyzer(mappings: Iterable[Mapping[str, Any]], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the names in groups of the same analyzer in every index. The order of `names` is kept."""
    groups: dict[tuple[str | None, ...], list[str]] = {}
    all_properties = list(mappings)
    for name in dict.fromkeys(names):
        analyzers = tuple(find_analyzer(properties, name) for properties in all_properties)
        groups.setdefault(analyzers, []).append(name)
    return tuple(map(tuple, groups.values()))


def find_analyzer(properties: Mapping[str, Any], name: str) -> str | None:
    """Return the analyzer that a mapping names for a field, and None when the field has the index's default."""
    return (find_definition(properties, name) or {}).get("analyzer")


def walk_fields(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (name, name in the source, definition) of every field and sub-field."""
    for name, definition in properties.items():
        full_name = f"{prefix}{name}"
        yield full_name, full_name, definition
        for sub_name, sub_definition in definition.get("fields", {}).items():
            yield f"{full_name}.{sub_name}", full_name, sub_definition
        yield from walk_fields(definition.get("properties", {}), f"{full_name}.")


def find_definition(properties: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return the definition of a field or sub-field, and None when there is none."""
    return next((definition for field, _, definition in walk_fields(properties) if field == name), None)


def find_source_name(properties: Mapping[str, Any], name: str) -> str:
    """Return the field of the source that holds the text of a field: its parent when it is a sub-field, else itself."""
    return next(source for field, source, _ in walk_fields(properties) if field == name)


def find_copied_fields(properties: Mapping[str, Any], name: str) -> list[str]:
    """Return the fields that are copied to the field `name`."""

    def list_targets(definition: Mapping[str, Any]) -> list[str]:
        targets = definition.get("copy_to", [])
        return [targets] if isinstance(targets, str) else targets

    return [field for field, _, definition in walk_fields(properties) if name in list_targets(definition)]


def rank_title_first(name: str) -> tuple[bool, str]:
    """A sort key: titles come before other fields, and fields are sorted by name."""
    is_title = name.rpartition(".")[2].lower() in _TITLE_FIELDS or name == "name"
    return not is_title, name
