"""The clauses that score a user's query: how each is read, and which clause carries an expansion beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from querylift.plugin.dsl.query_text import read_query_text, uses_query_syntax

ClausePath = tuple[str | int, ...]
Clause = dict[str, Any]

PHRASE_CLAUSES = frozenset({"match_phrase", "match_phrase_prefix", "match_bool_prefix", "intervals", "span_near"})
# Tuples, because a value in a body may be unhashable.
_PHRASE_TYPES = ("phrase", "phrase_prefix", "bool_prefix")
_SCORE_TYPES = ("best_fields", "most_fields", "cross_fields")
_OPTION_TYPES: dict[str, Any] = {"analyzer": str, "tie_breaker": int | float}
_MAX_BOOST = 1e30
"""The engines keep boosts in 32 bits, which end at 3.4e38."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A clause that scores the user's query, and holds no other clause.

    `path` leads to it from the root of the body. `text` is the user's text, with whitespace collapsed and without
    what escapes or groups query syntax. `uses_syntax` is true when its clause reads the text as query syntax, and there
    is some. `fields` are as the client wrote them, boosts included (`title^3`).
    They are empty when the clause names none, so that the default of the index applies. `sets_required_matches` is true
    when the clause, or the bool around it, says which or how many words must match. `expansion_options` are the options
    that also apply to the words of an expansion. `parts` are the leaves of a dis_max.
    """

    path: ClausePath
    kind: str
    text: str
    fields: tuple[str, ...]
    boost: float = 1.0
    sets_required_matches: bool = False
    uses_syntax: bool = False
    expansion_options: Clause = field(default_factory=dict)
    parts: tuple[Leaf, ...] = ()

    def __repr__(self) -> str:
        return f"Leaf({self.kind}, fields={self.fields})"

    def build_expansion_clause(self, words: str, weight: float) -> Clause:
        """Return a clause that searches `words` in the same fields. It never reads them as query syntax."""
        if self.parts:
            queries = [part.build_expansion_clause(words, weight * part.boost) for part in self.parts]
            return {"dis_max": {"queries": queries} | self.expansion_options}
        options: Clause = {"query": words, "boost": round_weight(weight)} | self.expansion_options
        if self.kind == "match":
            return {"match": {self.fields[0]: options | {"lenient": True}}}
        if self.fields:
            options["fields"] = list(self.fields)
        if self.kind == "combined_fields":
            return {"combined_fields": options}
        return {"multi_match": options | {"lenient": True}}

    def narrow_to_fields(self, listed_fields: tuple[str, ...]) -> Leaf | None:
        """Return this leaf with only those of its fields that are listed. Return None when no field is listed.

        A leaf that names no field gets the listed ones.
        """
        if self.parts:
            narrowed_parts = (part.narrow_to_fields(listed_fields) for part in self.parts)
            parts = tuple(part for part in narrowed_parts if part is not None)
            return replace(self, parts=parts, fields=_collect_fields(parts)) if parts else None
        if self.kind == "match":  # its field is always a name, never a pattern
            return self if any(matches_listed_field(self.fields[0], name) for name in listed_fields) else None
        fields = _narrow_fields(self.fields, listed_fields) if self.fields else listed_fields
        return replace(self, fields=fields) if fields else None

    def may_search_field(self, field: str) -> bool:
        """Whether the clause may search `field`. A clause that names no field may search any."""
        if self.parts:
            return any(part.may_search_field(field) for part in self.parts)
        return not self.fields or any(_name_may_search_field(name, field) for name in self.fields)

    def get_field_boost(self, field: str) -> float:
        """Return the factor for the score of `field`, without the clause's own boost."""
        if self.parts:
            matching_parts = (part for part in self.parts if part.may_search_field(field))
            return next((part.boost * part.get_field_boost(field) for part in matching_parts), 1.0)
        return next((_parse_field_boost(name) for name in self.fields if _name_may_search_field(name, field)), 1.0)

    def get_largest_field_boost(self) -> float:
        """Return the largest boost of a field, and 1 when the clause names no field."""
        return max((_parse_field_boost(name) for name in self.fields), default=1.0)


def strip_boost(field: str) -> str:
    """Return the name of a field without its boost."""
    return field.split("^", 1)[0]


def matches_listed_field(field: str, listed_field: str) -> bool:
    """Whether a clause's `field` is the listed field, a sub-field of it, or a pattern that matches it."""
    name = strip_boost(field)
    return name == listed_field or name.startswith(listed_field + ".") or _matches_pattern(listed_field, name)


def round_weight(weight: float) -> float:
    """Round to six significant digits, which rank alike and read well. Cap the weight at what the engines can hold."""
    return float(f"{min(weight, _MAX_BOOST):.6g}")


def has_phrase_type(content: Any) -> bool:
    """Whether the content of a match or multi_match clause asks for a phrase through `type`."""
    candidates = [content, *content.values()] if isinstance(content, dict) else []
    return any(isinstance(item, dict) and item.get("type") in _PHRASE_TYPES for item in candidates)


def requires_several_matches(minimum_should_match: Any) -> bool:
    """Whether a `minimum_should_match` asks for more than the one match that is always needed."""
    return minimum_should_match not in (None, 0, 1, "0", "1")


def merge_dis_max(content: Clause, parts: tuple[Leaf, ...], path: ClausePath) -> Leaf | None:
    """Return the leaves of one dis_max, which all hold the same text, as one leaf. Return None for an unusable boost."""
    boost = parse_boost(content)
    if boost is None:
        return None
    return Leaf(
        path,
        "dis_max",
        parts[0].text,
        _collect_fields(parts),
        boost,
        any(part.sets_required_matches for part in parts),
        expansion_options=_pick_valid_options(content, "tie_breaker"),
        parts=parts,
    )


def _read_match(content: Any, path: ClausePath) -> Leaf | None:
    if not isinstance(content, dict) or len(content) != 1:
        return None
    field, value = next(iter(content.items()))
    options = value if isinstance(value, dict) else {"query": value}
    return _build_leaf("match", options, path, (field,), _pick_valid_options(options, "analyzer"))


def _read_multi_match(content: Any, path: ClausePath) -> Leaf | None:
    return _read_multi_field_clause("multi_match", content, path)


def _read_combined_fields(content: Any, path: ClausePath) -> Leaf | None:
    fields = parse_fields(content)
    return _build_leaf("combined_fields", content, path, fields, {}) if fields else None


def _read_query_string(content: Any, path: ClausePath) -> Leaf | None:
    if isinstance(content, dict) and not content.get("fields") and isinstance(content.get("default_field"), str):
        content = content | {"fields": content["default_field"]}
    return _read_multi_field_clause("query_string", content, path)


def _read_simple_query_string(content: Any, path: ClausePath) -> Leaf | None:
    return _read_multi_field_clause("simple_query_string", content, path)


def _read_multi_field_clause(kind: str, content: Any, path: ClausePath) -> Leaf | None:
    """Return a leaf whose expansion goes into a multi_match."""
    fields = parse_fields(content)
    if fields is None:
        return None
    expansion_options = _pick_valid_options(content, "tie_breaker", "analyzer")
    if content.get("type") in _SCORE_TYPES:
        expansion_options["type"] = content["type"]
    return _build_leaf(kind, content, path, fields, expansion_options)


def _build_leaf(
    kind: str, options: Clause, path: ClausePath, fields: tuple[str, ...], expansion_options: Clause
) -> Leaf | None:
    """Return the leaf. Return None when it holds no words, asks for a phrase, or has an unusable boost."""
    text, boost = options.get("query"), parse_boost(options)
    if not isinstance(text, str) or boost is None:
        return None
    words = read_query_text(kind, text)
    if not words:
        return None
    if options.get("type", "boolean") not in (*_SCORE_TYPES, "boolean"):
        return None
    return Leaf(
        path,
        kind,
        words,
        fields,
        boost,
        _sets_required_matches(options),
        uses_query_syntax(kind, text),
        expansion_options,
    )


LEAF_READERS: dict[str, Callable[[Any, ClausePath], Leaf | None]] = {
    "match": _read_match,
    "multi_match": _read_multi_match,
    "combined_fields": _read_combined_fields,
    "query_string": _read_query_string,
    "simple_query_string": _read_simple_query_string,
}
"""For each kind of text clause, a function that reads its content. It returns None for a shape that may be unsafe."""


def parse_fields(content: Any) -> tuple[str, ...] | None:
    """Return the fields of a clause, () when it names none, or None when the clause or its list has another shape."""
    if not isinstance(content, dict):
        return None
    fields = content.get("fields", [])
    if isinstance(fields, str):
        fields = [fields]
    if not isinstance(fields, list) or not all(isinstance(name, str) and name for name in fields):
        return None
    return tuple(fields)


def _collect_fields(parts: Iterable[Leaf]) -> tuple[str, ...]:
    return tuple(field for part in parts for field in part.fields)


def _narrow_fields(fields: tuple[str, ...], listed_fields: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of `fields` that are listed. A pattern becomes the listed fields that match it, with its boost."""
    narrowed: dict[str, None] = {}
    for name_with_boost in fields:
        name = strip_boost(name_with_boost)
        if any(name == listed or name.startswith(listed + ".") for listed in listed_fields):
            narrowed[name_with_boost] = None
        else:
            boost_suffix = name_with_boost[len(name) :]
            narrowed |= dict.fromkeys(
                listed + boost_suffix for listed in listed_fields if _matches_pattern(listed, name)
            )
    return tuple(narrowed)


def _matches_pattern(name: str, pattern: str) -> bool:
    """Whether `name` matches a pattern in which * stands for any text. The engines know no other sign here."""
    prefix, *parts = pattern.split("*")
    if not parts or not name.startswith(prefix):
        return False
    position = len(prefix)
    for part in parts[:-1]:
        part_start = name.find(part, position)
        if part_start < 0:
            return False
        position = part_start + len(part)
    return name.endswith(parts[-1]) and len(name) - len(parts[-1]) >= position


def _name_may_search_field(name: str, field: str) -> bool:
    """Whether a clause with this field name searches `field`, a sub-field of it, or its parent field."""
    return matches_listed_field(name, field) or field.startswith(strip_boost(name) + ".")


def parse_boost(options: Clause) -> float | None:
    """Return the boost, or None when it is not a number above 0. A clause with boost 0 filters and does not score."""
    boost = options.get("boost", 1)
    is_number = isinstance(boost, int | float) and not isinstance(boost, bool)
    return float(boost) if is_number and 0 < boost < _MAX_BOOST else None


def _parse_field_boost(field: str) -> float:
    """Return the boost after the ^ of a field, or 1 when there is no usable one."""
    try:
        boost = float(field.partition("^")[2] or 1)
    except ValueError:
        return 1.0
    return boost if 0 < boost < _MAX_BOOST else 1.0


def _sets_required_matches(options: Clause) -> bool:
    operator = options.get("operator", options.get("default_operator", "or"))
    return requires_several_matches(options.get("minimum_should_match")) or str(operator).lower() != "or"


def _pick_valid_options(options: Clause, *names: str) -> Clause:
    """Return the options of these names whose values have the type that the engines expect."""
    return {name: options[name] for name in names if isinstance(options.get(name), _OPTION_TYPES[name])}
