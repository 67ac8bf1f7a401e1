"""The text clauses of the query DSL: how each is read, and the clause that carries an expansion beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

Path = tuple[str | int, ...]
Clause = dict[str, Any]

PHRASES = frozenset({"match_phrase", "match_phrase_prefix", "match_bool_prefix", "intervals", "span_near"})
# Tuples: what stands in a body may be unhashable.
_PHRASE_TYPES = ("phrase", "phrase_prefix", "bool_prefix")
_SCORE_TYPES = ("best_fields", "most_fields", "cross_fields")
_OPTION_TYPES: dict[str, Any] = {"analyzer": str, "tie_breaker": int | float}
_MAX_BOOST = 1e30
"""The engines keep boosts in 32 bits, which end at 3.4e38."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A clause that scores the user's words.

    `path` leads to it from the body's root. `fields` stand as written, boosts included (`title^3`); empty where the
    clause names none and the index's default applies. `demands` is true where the clause, or the bool around it, sets
    which or how many must match. `carried` are the options that hold for other words too. `parts` are the leaves of a
    dis_max.
    """

    path: Path
    kind: str
    text: str
    fields: tuple[str, ...]
    boost: float = 1.0
    demands: bool = False
    carried: Clause = field(default_factory=dict)
    parts: tuple[Leaf, ...] = ()

    def __repr__(self) -> str:
        return f"Leaf({self.kind}, fields={self.fields})"

    def template(self, words: str, weight: float) -> Clause:
        """The clause that carries other `words` for the same fields; never one that reads them as query syntax."""
        if self.parts:
            return {"dis_max": {"queries": [p.template(words, weight * p.boost) for p in self.parts]} | self.carried}
        options: Clause = {"query": words, "boost": rounded(weight)} | self.carried
        if self.kind == "match":
            return {"match": {self.fields[0]: options | {"lenient": True}}}
        if self.fields:
            options["fields"] = list(self.fields)
        if self.kind == "combined_fields":
            return {"combined_fields": options}
        return {"multi_match": options | {"lenient": True}}

    def narrowed(self, listed: tuple[str, ...]) -> Leaf | None:
        """This leaf, to be expanded over those of its fields that are `listed`; None where none is.

        A clause that names no field is taken to search the listed ones.
        """
        if self.parts:
            kept = [part for part in (p.narrowed(listed) for p in self.parts) if part is not None]
            return replace(self, parts=tuple(kept), fields=_all_fields(kept)) if kept else None
        if self.kind == "match":  # its field is a name, never a pattern
            return self if any(covers(self.fields[0], name) for name in listed) else None
        fields = _narrowed(self.fields, listed) if self.fields else listed
        return replace(self, fields=fields) if fields else None

    def searches(self, field: str) -> bool:
        """Whether the clause searches `field`, as far as can be told: one that names none may search any."""
        if self.parts:
            return any(part.searches(field) for part in self.parts)
        return not self.fields or any(_searches(named, field) for named in self.fields)

    def field_boost(self, field: str) -> float:
        """What the clause multiplies the score of `field` with, beside its own boost."""
        if self.parts:
            return next((part.boost * part.field_boost(field) for part in self.parts if part.searches(field)), 1.0)
        return next((_field_boost(named) for named in self.fields if _searches(named, field)), 1.0)


def bare(field: str) -> str:
    """`field` without its boost."""
    return field.split("^", 1)[0]


def covers(field: str, listed: str) -> bool:
    """Whether `field`, as a clause names it, is the `listed` one, a sub-field of it, or a pattern that takes it in."""
    name = bare(field)
    return name == listed or name.startswith(listed + ".") or _is_like(listed, name)


def rounded(weight: float) -> float:
    """Six significant digits: enough to rank by, short to read; never past what the engines can hold."""
    return float(f"{min(weight, _MAX_BOOST):.6g}")


def is_phrase(inner: Any) -> bool:
    """Whether the content of a match or multi_match asks for a phrase through `type`."""
    candidates = [inner, *inner.values()] if isinstance(inner, dict) else []
    return any(isinstance(c, dict) and c.get("type") in _PHRASE_TYPES for c in candidates)


def wants_several(minimum_should_match: Any) -> bool:
    """Whether a minimum_should_match asks for more than the one match that is the least anyway."""
    return minimum_should_match not in (None, 0, 1, "0", "1")


def dis_max(inner: Clause, parts: tuple[Leaf, ...], path: Path) -> Leaf | None:
    """Several leaves with one text, under one dis_max, as one leaf; None where its boost is not ours to scale."""
    boost = _boost(inner)
    if boost is None:
        return None
    demands = any(part.demands for part in parts)
    carried = _kept(inner, "tie_breaker")
    return Leaf(path, "dis_max", parts[0].text, _all_fields(parts), boost, demands, carried, parts)


def _match(inner: Any, path: Path) -> Leaf | None:
    if not isinstance(inner, dict) or len(inner) != 1:
        return None
    field, value = next(iter(inner.items()))
    options = value if isinstance(value, dict) else {"query": value}
    return _leaf("match", options, path, (field,), _kept(options, "analyzer"))


def _multi_match(inner: Any, path: Path) -> Leaf | None:
    return _over_fields("multi_match", inner, path)


def _combined_fields(inner: Any, path: Path) -> Leaf | None:
    fields = _fields(inner)
    return _leaf("combined_fields", inner, path, fields, {}) if fields else None


def _query_string(inner: Any, path: Path) -> Leaf | None:
    if isinstance(inner, dict) and not inner.get("fields") and isinstance(inner.get("default_field"), str):
        inner = inner | {"fields": inner["default_field"]}
    return _over_fields("query_string", inner, path)


def _simple_query_string(inner: Any, path: Path) -> Leaf | None:
    return _over_fields("simple_query_string", inner, path)


def _over_fields(kind: str, inner: Any, path: Path) -> Leaf | None:
    """A leaf whose expansion is a multi_match."""
    fields = _fields(inner)
    if fields is None:
        return None
    carried = _kept(inner, "tie_breaker", "analyzer")
    if inner.get("type") in _SCORE_TYPES:
        carried["type"] = inner["type"]
    return _leaf(kind, inner, path, fields, carried)


def _leaf(kind: str, options: Clause, path: Path, fields: tuple[str, ...], carried: Clause) -> Leaf | None:
    """The leaf, where there are words, a boost that can be scaled, and nothing that asks for a phrase."""
    text, boost = options.get("query"), _boost(options)
    if not isinstance(text, str) or not text.strip() or boost is None:
        return None
    if options.get("type", "boolean") not in (*_SCORE_TYPES, "boolean"):
        return None
    return Leaf(path, kind, text, fields, boost, _demands(options), carried)


READERS: dict[str, Callable[[Any, Path], Leaf | None]] = {
    "match": _match,
    "multi_match": _multi_match,
    "combined_fields": _combined_fields,
    "query_string": _query_string,
    "simple_query_string": _simple_query_string,
}
"""Reads the content of each kind of text clause; None where it has no shape that is known to be safe."""


def _fields(inner: Any) -> tuple[str, ...] | None:
    """The fields named, () where none is, None where the clause or the list has another shape."""
    if not isinstance(inner, dict):
        return None
    fields = inner.get("fields", [])
    if isinstance(fields, str):
        fields = [fields]
    if not isinstance(fields, list) or not all(isinstance(f, str) and f for f in fields):
        return None
    return tuple(fields)


def _all_fields(parts: Iterable[Leaf]) -> tuple[str, ...]:
    return tuple(field for part in parts for field in part.fields)


def _narrowed(fields: tuple[str, ...], listed: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `fields` that are listed, a pattern replaced by the listed fields that it takes in, with its boost."""
    kept: dict[str, None] = {}
    for named in fields:
        name = bare(named)
        if any(name == other or name.startswith(other + ".") for other in listed):
            kept[named] = None
        else:
            kept |= dict.fromkeys(other + named[len(name) :] for other in listed if _is_like(other, name))
    return tuple(kept)


def _is_like(name: str, pattern: str) -> bool:
    """Whether `name` fits a pattern in which * stands for anything: the engines know no other sign here."""
    first, *rest = pattern.split("*")
    if not rest or not name.startswith(first):
        return False
    at = len(first)
    for part in rest[:-1]:
        found = name.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return name.endswith(rest[-1]) and len(name) - len(rest[-1]) >= at


def _searches(named: str, field: str) -> bool:
    """Whether a clause that names `named` searches `field`, a sub-field of it, or the field that it is a sub-field of."""
    return covers(named, field) or field.startswith(bare(named) + ".")


def _boost(options: Clause) -> float | None:
    """The boost; None where it is no number above zero. (A clause with boost 0 filters, it does not score.)"""
    boost = options.get("boost", 1)
    is_number = isinstance(boost, int | float) and not isinstance(boost, bool)
    return float(boost) if is_number and 0 < boost < _MAX_BOOST else None


def _field_boost(named: str) -> float:
    try:
        boost = float(named.partition("^")[2] or 1)
    except ValueError:
        return 1.0
    return boost if 0 < boost < _MAX_BOOST else 1.0


def _demands(options: Clause) -> bool:
    operator = options.get("operator", options.get("default_operator", "or"))
    return wants_several(options.get("minimum_should_match")) or str(operator).lower() != "or"


def _kept(options: Clause, *names: str) -> Clause:
    """Those of the options named that are what the engines take them to be."""
    return {name: options[name] for name in names if isinstance(options.get(name), _OPTION_TYPES[name])}
