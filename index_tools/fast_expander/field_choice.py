"""Looks at the text fields of an index, and chooses the ones that an expander reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.index_fields import (
    find_analyzer,
    find_copied_fields,
    find_definition,
    find_source_name,
    group_by_analyzer,
    rank_title_first,
    read_mappings,
    walk_fields,
)
from querylift.index_tools.fast_expander.index_reader import fetch_random_sources, join_field_texts
from querylift.plugin.errors import SettingsError
from querylift.plugin.words import count_words

SAMPLE_DOCUMENTS = 500
MIN_COVERAGE = 0.05
"""A field in a smaller share of the documents is nearly empty."""
MAX_FIELDS = 8
"""Every field adds one clause for each term."""
_MAX_CODE_SHARE = 0.5
_MIN_HELD_SHARE = 0.95
"""A field holds another one when it holds the other's text in this share of the documents."""
_MAX_LABEL_WORDS, _MAX_LABEL_SHARE = 3, 0.05
"""A label has fewer words than this, and at most so many different values for each document."""
_CODE = re.compile(r"[!-~]*[0-9_/@][!-~]*")


@dataclass(frozen=True, slots=True)
class FieldFacts:
    """A text field, as a sample of documents shows it.

    `coverage` is the share of the documents that have it, from 0 to 1. `mean_words` is over those documents. `reason` says
    why the field is left out; "" when it is chosen.
    """

    name: str
    analyzer: str = ""
    coverage: float = 0.0
    mean_words: float = 0.0
    reason: str = ""


def choose_fields(engine: Engine, expression: str, *, form: str = "neighbours") -> list[FieldFacts]:
    """Return all text fields of the indices that `expression` stands for, titles first, each chosen or left out.

    The form `terms` takes the fields of one analyzer, and the form `cluster` one field: those with the most words.

    Raises SettingsError when there is no index, and when no field is chosen.
    """
    mappings = read_mappings(engine, expression)
    names = sorted({name for properties in mappings.values() for name in _list_text_fields(properties)})
    names.sort(key=rank_title_first)
    source_names = {name: _find_sources(mappings, name) for name in names}
    all_sources = sorted({source for sources in source_names.values() for source in sources})
    documents = fetch_random_sources(engine, expression, sources=all_sources, size=SAMPLE_DOCUMENTS)
    texts = {name: [join_field_texts(document, source_names[name]) for document in documents] for name in names}
    fields = [
        _describe_field(name, _find_analyzer_name(mappings, name), texts[name], _find_mapping_reason(mappings, name))
        for name in names
    ]
    fields = _leave_out_copies(fields, texts, _find_all_copies(mappings, names))
    fields = _leave_out_for_form(fields, mappings, form)
    if not any(field.reason == "" for field in fields):
        reasons = "; ".join(f"{field.name}: {field.reason}" for field in fields) or "it has no text field"
        raise SettingsError(f"no field of {expression} can be chosen ({reasons}); name one with --field")
    return fields


def list_chosen_names(fields: Sequence[FieldFacts]) -> tuple[str, ...]:
    """Return the names of the chosen fields."""
    return tuple(field.name for field in fields if not field.reason)


def format_field_table(fields: Sequence[FieldFacts]) -> list[str]:
    """Return a line for each field: name, analyzer, coverage, mean words, and whether it is chosen."""
    name_width = max(len(field.name) for field in fields)
    analyzer_width = max(len(field.analyzer) for field in fields)
    return [
        f"  {field.name:{name_width}}  {field.analyzer:{analyzer_width}}  {field.coverage:4.0%} of documents  "
        f"{field.mean_words:5.0f} words  {f'left out: {field.reason}' if field.reason else 'chosen'}"
        for field in fields
    ]


def _list_text_fields(properties: Mapping[str, Any]) -> list[str]:
    return [name for name, _, definition in walk_fields(properties) if definition.get("type") == "text"]


def _find_sources(mappings: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """Return the source fields that hold the text of a field, titles first."""
    sources: set[str] = set()
    for properties in mappings.values():
        if find_definition(properties, name) is not None:
            sources.update(find_copied_fields(properties, name) or [find_source_name(properties, name)])
    return sorted(sources, key=rank_title_first)


def _find_analyzer_name(mappings: Mapping[str, Mapping[str, Any]], name: str) -> str:
    analyzers = {find_analyzer(properties, name) or "default" for properties in mappings.values()}
    return ", ".join(sorted(analyzers))


def _find_mapping_reason(mappings: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Return why the mappings alone leave a field out; "" when they do not."""
    for index, properties in mappings.items():
        definition = find_definition(properties, name)
        if definition is None or definition.get("type") != "text":
            return f"{index} has no such text field"
        if definition.get("index") is False:
            return "it cannot be searched"
        if any(name.startswith(f"{nested_name}.") for nested_name in _list_nested_objects(properties)):
            return "it is inside a nested object"
        parent = find_source_name(properties, name)
        if parent != name and (find_definition(properties, parent) or {}).get("type") == "text":
            return f"it is a sub-field of {parent}"
    return ""


def _list_nested_objects(properties: Mapping[str, Any]) -> Iterator[str]:
    return (name for name, _, definition in walk_fields(properties) if definition.get("type") == "nested")


def _describe_field(name: str, analyzer: str, texts: Sequence[str], mapping_reason: str) -> FieldFacts:
    """Return what the texts of a field in the sample show."""
    filled_texts = [text for text in texts if text]
    coverage = len(filled_texts) / len(texts) if texts else 0.0
    mean_words = sum(map(count_words, filled_texts)) / len(filled_texts) if filled_texts else 0.0
    facts = FieldFacts(name, analyzer, coverage, mean_words)
    return replace(facts, reason=mapping_reason or _find_text_reason(facts, filled_texts))


def _find_text_reason(facts: FieldFacts, filled_texts: Sequence[str]) -> str:
    """Return why the texts of a field leave it out; "" when they do not."""
    if not filled_texts:
        return "no document has it"
    if facts.coverage < MIN_COVERAGE:
        return f"fewer than {MIN_COVERAGE:.0%} of the documents have it"
    if sum(map(_is_code, filled_texts)) >= _MAX_CODE_SHARE * len(filled_texts):
        return "its values are codes, numbers or addresses"
    value_count = len(set(filled_texts))
    if facts.mean_words < _MAX_LABEL_WORDS and 1 < value_count <= _MAX_LABEL_SHARE * len(filled_texts):
        return f"its values are labels, only {value_count} different ones"
    return ""


def _is_code(text: str) -> bool:
    """Whether half of the words, or more, are ASCII with a digit, or with a sign of addresses and names."""
    words = text.split()
    return 2 * sum(_CODE.fullmatch(word) is not None for word in words) >= len(words)


def _find_all_copies(mappings: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, set[str]]:
    """Return, for each field that others are copied to, the names of those."""
    copies = {
        name: {source for properties in mappings.values() for source in find_copied_fields(properties, name)}
        for name in names
    }
    return {name: sources for name, sources in copies.items() if sources}


def _leave_out_copies(
    fields: Sequence[FieldFacts], texts: Mapping[str, Sequence[str]], copies: Mapping[str, set[str]]
) -> list[FieldFacts]:
    """Keep a field that holds all the others alone, and leave out a field that holds several of the others."""
    candidates = list_chosen_names(fields)
    held_names = {
        name: copies.get(name, set()).intersection(candidates) or _find_held_fields(name, candidates, texts)
        for name in candidates
    }
    reasons: dict[str, str] = {}
    for name, held in held_names.items():
        others = {other for other in candidates if other != name and other not in copies}
        if held and held >= others:
            reasons = dict.fromkeys((other for other in candidates if other != name), f"{name} holds its text")
            break
        if held:
            reasons[name] = f"it holds the text of {', '.join(sorted(held, key=rank_title_first))}"
    return [replace(field, reason=field.reason or reasons.get(field.name, "")) for field in fields]


def _find_held_fields(name: str, candidates: Sequence[str], texts: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the candidates whose texts stand in the texts of the field `name`. Empty when it is only one."""
    held = set()
    for other in candidates:
        pairs = [(text, whole) for text, whole in zip(texts[other], texts[name], strict=True) if text]
        if other != name and sum(text in whole for text, whole in pairs) >= _MIN_HELD_SHARE * len(pairs):
            held.add(other)
    return held if len(held) > 1 else set()


def _leave_out_for_form(
    fields: Sequence[FieldFacts], mappings: Mapping[str, Mapping[str, Any]], form: str
) -> list[FieldFacts]:
    """Keep at most as many fields as the form takes, those with the most words. Titles are always kept first."""
    chosen = {field.name: field for field in fields if not field.reason}

    def count_all_words(names: Iterable[str]) -> float:
        return sum(chosen[name].coverage * chosen[name].mean_words for name in names)

    by_words = sorted(chosen, key=lambda name: (rank_title_first(name)[0], -count_all_words([name])))
    kept_names, reason = set(by_words[:MAX_FIELDS]), f"there are more than {MAX_FIELDS} fields"
    if form == "cluster" and chosen:
        kept_names = {max(chosen, key=lambda name: count_all_words([name]))}
        reason = "the form cluster takes the terms of one field"
    if form == "terms" and chosen:
        kept_names = set(max(group_by_analyzer(mappings.values(), list(chosen)), key=count_all_words))
        reason = "the form terms takes fields of one analyzer"
    return [
        replace(field, reason=reason) if field.name in chosen and field.name not in kept_names else field
        for field in fields
    ]
