"""The text clauses of the query DSL: how each is read, and the clause that carries an expansion beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

Path = tuple[str | int, ...]
Clause = dict[str, Any]

PHRASES = frozenset({"match_phrase", "match_phrase_prefix", "match_bool_prefix", "intervals", "span_near"})
_PHRASE_TYPES = frozenset({"phrase", "phrase_prefix", "bool_prefix"})
_SCORE_TYPES = ("best_fields", "most_fields", "cross_fields")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A clause that scores the user's words.

    `path` leads to it from the body's root. `fields` stand as written, boosts included (`title^3`); empty where the
    clause names none and the index's default applies. `template` builds the clause that carries other words for the
    same fields. `demands` is true where the clause sets which or how many of its words must match.
    """

    path: Path
    kind: str
    text: str
    fields: tuple[str, ...]
    template: Callable[[str, float], Clause]
    boost: float = 1.0
    demands: bool = False

    def __repr__(self) -> str:
        return f"Leaf({self.kind}, fields={self.fields})"


def bare(field: str) -> str:
    """`field` without its boost."""
    return field.split("^", 1)[0]


def covers(field: str, listed: str) -> bool:
    """Whether `field`, as a clause names it, is the `listed` one, a sub-field of it, or a pattern that takes it in."""
    name = bare(field)
    return name == listed or name.startswith(listed + ".") or ("*" in name and fnmatchcase(listed, name))


def is_phrase(inner: Any) -> bool:
    """Whether the content of a match or multi_match asks for a phrase through `type`."""
    candidates = [inner, *inner.values()] if isinstance(inner, dict) else []
    return any(isinstance(c, dict) and c.get("type") in _PHRASE_TYPES for c in candidates)


def dis_max(inner: Clause, parts: tuple[Leaf, ...], path: Path) -> Leaf:
    """Several leaves with one text, under one dis_max, as one leaf."""

    def template(words: str, weight: float) -> Clause:
        made: Clause = {"queries": [part.template(words, weight * part.boost) for part in parts]}
        return {"dis_max": made | _kept(inner, "tie_breaker")}

    fields = tuple(field for part in parts for field in part.fields)
    demands = any(part.demands for part in parts)
    return Leaf(path, "dis_max", parts[0].text, fields, template, _boost(inner), demands)


def _match(inner: Any, path: Path) -> Leaf | None:
    if not isinstance(inner, dict) or len(inner) != 1:
        return None
    field, value = next(iter(inner.items()))
    options = value if isinstance(value, dict) else {"query": value}
    if not _usable(options):
        return None
    carried = _kept(options, "analyzer")

    def template(words: str, weight: float) -> Clause:
        return {"match": {field: {"query": words, "boost": weight, "lenient": True} | carried}}

    return Leaf(path, "match", options["query"], (field,), template, _boost(options), _demands(options))


def _multi_match(inner: Any, path: Path) -> Leaf | None:
    if not isinstance(inner, dict) or not _usable(inner):
        return None
    fields = _fields(inner)
    return None if fields is None else _over_fields("multi_match", inner, path, fields)


def _combined_fields(inner: Any, path: Path) -> Leaf | None:
    if not isinstance(inner, dict) or not _usable(inner):
        return None
    fields = _fields(inner)
    if not fields:
        return None

    def template(words: str, weight: float) -> Clause:
        return {"combined_fields": {"query": words, "fields": list(fields), "boost": weight}}

    return Leaf(path, "combined_fields", inner["query"], fields, template, _boost(inner), _demands(inner))


def _query_string(inner: Any, path: Path) -> Leaf | None:
    if not isinstance(inner, dict) or not _usable(inner):
        return None
    fields = _fields(inner)
    if fields == () and isinstance(inner.get("default_field"), str):
        fields = (inner["default_field"],)
    return None if fields is None else _over_fields("query_string", inner, path, fields)


def _simple_query_string(inner: Any, path: Path) -> Leaf | None:
    if not isinstance(inner, dict) or not _usable(inner):
        return None
    fields = _fields(inner)
    return None if fields is None else _over_fields("simple_query_string", inner, path, fields)


def _over_fields(kind: str, inner: Clause, path: Path, fields: tuple[str, ...]) -> Leaf:
    """A leaf whose expansion is a multi_match: what the model wrote is never read as query syntax."""
    carried = _kept(inner, "tie_breaker", "analyzer")
    if inner.get("type") in _SCORE_TYPES:
        carried["type"] = inner["type"]
    if fields:
        carried["fields"] = list(fields)

    def template(words: str, weight: float) -> Clause:
        return {"multi_match": {"query": words, "boost": weight, "lenient": True} | carried}

    return Leaf(path, kind, inner["query"], fields, template, _boost(inner), _demands(inner))


READERS: dict[str, Callable[[Any, Path], Leaf | None]] = {
    "match": _match,
    "multi_match": _multi_match,
    "combined_fields": _combined_fields,
    "query_string": _query_string,
    "simple_query_string": _simple_query_string,
}
"""Reads the content of each kind of text clause; None where it has no shape that is known to be safe."""


def _usable(options: Clause) -> bool:
    """Whether there are words and nothing asks for a phrase. A boost below or at zero, or no number, is not ours to scale."""
    boost = options.get("boost", 1)
    return (
        isinstance(options.get("query"), str)
        and bool(options["query"].strip())
        and options.get("type", "best_fields") in (*_SCORE_TYPES, "boolean")
        and isinstance(boost, int | float)
        and not isinstance(boost, bool)
        and boost > 0
    )


def _fields(inner: Clause) -> tuple[str, ...] | None:
    """The fields named, () where none is, None where the list has another shape."""
    fields = inner.get("fields", [])
    if isinstance(fields, str):
        return (fields,)
    if not isinstance(fields, list) or not all(isinstance(f, str) and f for f in fields):
        return None
    return tuple(fields)


def _boost(options: Clause) -> float:
    return float(options.get("boost", 1.0))


def _demands(options: Clause) -> bool:
    operator = options.get("operator", options.get("default_operator", "or"))
    return "minimum_should_match" in options or str(operator).lower() != "or"


def _kept(options: Clause, *names: str) -> Clause:
    return {name: options[name] for name in names if name in options}
