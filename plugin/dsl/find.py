"""Locate the clauses of a search request that score the user's words.

Only clauses that score are entered: bool.must and bool.should, dis_max, function_score, nested, the standard retriever
(alone or under rrf) and the parts of a top-level hybrid. Everything else is passed by, so a filter cannot be reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from querylift.plugin.dsl import clauses
from querylift.plugin.dsl.clauses import Leaf, Path
from querylift.plugin.dsl.params import Params
from querylift.plugin.dsl.skip import Skip
from querylift.plugin.dsl.text import check, check_plain
from querylift.plugin.policy import Policy

MAX_DEPTH = 12
"""Compound clauses around a leaf. Elasticsearch 9 takes 29, OpenSearch what its stack holds; a rewrite adds up to three."""
MAX_LEAVES = 16
_MAX_SEEN = 256
"""Text clauses looked at before a request is given up: the walk must not take longer than a search."""
_SAMPLERS = ("sampler", "diversified_sampler")
"""Aggregations over the hits that score best."""

__all__ = ["Found", "Leaf", "find"]


@dataclass(frozen=True, slots=True)
class Found:
    """The user's text, whitespace collapsed, and every clause that scores it. `text` is left out of the repr."""

    text: str
    leaves: tuple[Leaf, ...]

    def __repr__(self) -> str:
        return f"Found({len(self.leaves)} clauses)"

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the clauses search, without boosts, each once; empty where none is named."""
        return tuple(dict.fromkeys(clauses.bare(f) for leaf in self.leaves for f in leaf.fields))


def find(body: dict[str, Any], policy: Policy, params: Params | None = None) -> Found:
    """The clauses that an expansion can go beside. Raises Skip where the request is to be left as it is."""
    _check_request(body, params or Params(), policy)
    walk = _Walk()
    seen = list(walk.roots(body))
    if not seen:
        raise Skip(walk.passed_by or "no-text")
    leaves = [leaf for leaf in (_allowed(leaf, policy) for leaf in seen) if leaf is not None]
    if not leaves:
        raise Skip("fields")
    return _found(leaves, policy)


def _found(leaves: list[Leaf], policy: Policy) -> Found:
    texts = {" ".join(leaf.text.split()) for leaf in leaves}
    if len(texts) > 1:
        raise Skip("several-texts")
    if len(leaves) > MAX_LEAVES:
        raise Skip("too-many-clauses")
    text = texts.pop()
    for leaf in _each_part(leaves):
        if leaf.kind in ("query_string", "simple_query_string"):
            check_plain(leaf.kind, leaf.text)
    check(text, max_words=policy.max_query_words)
    return Found(text, tuple(leaves))


def _allowed(leaf: Leaf, policy: Policy) -> Leaf | None:
    """The clause as far as the policy lets it be expanded."""
    return leaf.narrowed(policy.fields) if policy.fields else leaf


def _each_part(leaves: Iterable[Leaf]) -> Iterator[Leaf]:
    for leaf in leaves:
        yield leaf
        yield from _each_part(leaf.parts)


def _check_request(body: dict[str, Any], params: Params, policy: Policy) -> None:
    """Raise Skip for what rules out the whole request, whatever its query is."""
    if params.q is not None:
        raise Skip("uri-query")
    if (params.size if params.size is not None else body.get("size")) in (0, "0"):
        raise Skip("size-0")
    if "min_score" in body:
        raise Skip("min-score")
    if params.scroll is not None and policy.mode == "widen":
        raise Skip("scroll")
    if not _sorts_by_score(params.sort if params.sort is not None else body.get("sort")):
        raise Skip("sort")
    if any(_mentions(body.get(key), *_SAMPLERS) for key in ("aggs", "aggregations")):
        raise Skip("min-score")
    if _highlights_aside(body):
        raise Skip("highlight")


def _sorts_by_score(sort: Any) -> bool:
    """Whether the score has a say in the order: no sort at all, or `_score` among its keys."""
    if sort is None or sort == []:
        return True
    if isinstance(sort, str):
        return any(part.split(":")[0].strip() == "_score" for part in sort.split(","))
    if isinstance(sort, dict):
        return "_score" in sort
    return isinstance(sort, list) and any(_sorts_by_score(key) for key in sort if isinstance(key, str | dict))


def _highlights_aside(body: dict[str, Any]) -> bool:
    """Whether the words added would be highlighted, and one highlight_query at the top could not mend it.

    That is so for hits inside hits (top_hits, collapse), and where the top level's query is not one query.
    """
    inside = (body.get(key) for key in ("aggs", "aggregations", "collapse", "retriever"))
    if any(_mentions(part, "highlight") for part in inside):
        return True
    highlight = body.get("highlight")
    return isinstance(highlight, dict) and "highlight_query" not in highlight and (_is_hybrid(body) or _is_fused(body))


def _is_hybrid(body: dict[str, Any]) -> bool:
    return isinstance(body.get("query"), dict) and "hybrid" in body["query"]


def _is_fused(body: dict[str, Any]) -> bool:
    """Whether a retriever does more than run one query: several, or one whose filters are highlighted too."""
    kind, inner = _only_item(body.get("retriever"))
    return "retriever" in body and (kind != "standard" or not isinstance(inner, dict) or "filter" in inner)


def _mentions(value: Any, *keys: str) -> bool:
    """Whether one of `keys` is a key anywhere in `value`. Iterative: depth is the user's to choose."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if any(key in item for key in keys):
                return True
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return False


class _Walk:
    """One pass over the clauses that score. Remembers why a text clause was passed by, for the reason of a skip."""

    def __init__(self) -> None:
        self.passed_by: str | None = None
        self._seen = 0

    def roots(self, body: dict[str, Any]) -> Iterator[Leaf]:
        query = body.get("query")
        if isinstance(query, dict) and isinstance(query.get("hybrid"), dict) and len(query) == 1:
            yield from self._each(query["hybrid"].get("queries"), ("query", "hybrid", "queries"), 1)
        elif query is not None:
            yield from self._clause(query, ("query",), 0)
        if "retriever" in body:
            yield from self._retriever(body["retriever"], ("retriever",), 0)

    def _retriever(self, value: Any, path: Path, depth: int) -> Iterator[Leaf]:
        kind, inner = _only_item(value)
        if not isinstance(inner, dict):
            return
        if "min_score" in inner:
            self.passed_by = "min-score"
        elif kind == "standard" and not _sorts_by_score(inner.get("sort")):
            self.passed_by = "sort"
        elif kind == "standard":
            yield from self._clause(inner.get("query"), (*path, "standard", "query"), depth + 1)
        elif kind == "rrf" and isinstance(inner.get("retrievers"), list) and depth < 3:
            for i, part in enumerate(inner["retrievers"]):
                yield from self._retriever(part, (*path, "rrf", "retrievers", i), depth + 1)

    def _clause(self, value: Any, path: Path, depth: int) -> Iterator[Leaf]:
        kind, inner = _only_item(value)
        if depth > MAX_DEPTH:
            self.passed_by = "too-deep"
        elif kind in clauses.READERS:
            yield from self._leaf(kind, inner, path)
        elif kind in clauses.PHRASES:
            self.passed_by = self.passed_by or "phrase"
        elif isinstance(inner, dict):
            yield from self._compound(kind, inner, (*path, kind), depth)

    def _leaf(self, kind: str, inner: Any, path: Path) -> Iterator[Leaf]:
        leaf = clauses.READERS[kind](inner, path)
        if leaf is not None:
            self._seen += 1
            if self._seen > _MAX_SEEN:
                raise Skip("too-many-clauses")
            yield leaf
        elif clauses.is_phrase(inner):
            self.passed_by = self.passed_by or "phrase"

    def _compound(self, kind: str, inner: dict[str, Any], path: Path, depth: int) -> Iterator[Leaf]:
        if kind == "bool":
            yield from self._bool(inner, path, depth)
        elif kind == "dis_max":
            yield from self._dis_max(inner, path, depth)
        elif kind == "function_score":
            if "min_score" in inner:
                self.passed_by = self.passed_by or "min-score"
            else:
                yield from self._clause(inner.get("query"), (*path, "query"), depth + 1)
        elif kind == "nested":
            if _mentions(inner.get("inner_hits"), "highlight"):
                self.passed_by = self.passed_by or "highlight"
            else:
                yield from self._clause(inner.get("query"), (*path, "query"), depth + 1)

    def _bool(self, inner: dict[str, Any], path: Path, depth: int) -> Iterator[Leaf]:
        """Where the bool counts its should clauses, none of them may come to match more than it did."""
        counts = clauses.wants_several(inner.get("minimum_should_match"))
        yield from self._each(inner.get("must"), (*path, "must"), depth + 1)
        for leaf in self._each(inner.get("should"), (*path, "should"), depth + 1):
            yield replace(leaf, demands=True) if counts else leaf

    def _each(self, value: Any, path: Path, depth: int) -> Iterator[Leaf]:
        if isinstance(value, list):
            for i, part in enumerate(value):
                yield from self._clause(part, (*path, i), depth)
        elif value is not None:
            yield from self._clause(value, path, depth)

    def _dis_max(self, inner: dict[str, Any], path: Path, depth: int) -> Iterator[Leaf]:
        """One leaf where every part is a leaf with the same text, else the leaves of the parts."""
        queries = inner.get("queries")
        parts = list(self._each(queries, (*path, "queries"), depth + 1))
        whole = None
        if isinstance(queries, list) and len(parts) == len(queries) > 1 and _alike(parts, path):
            whole = clauses.dis_max(inner, tuple(parts), path[:-1])
        yield from parts if whole is None else (whole,)


def _alike(parts: list[Leaf], path: Path) -> bool:
    direct = all(len(part.path) == len(path) + 2 for part in parts)
    return direct and len({" ".join(part.text.split()) for part in parts}) == 1


def _only_item(value: Any) -> tuple[str, Any]:
    """The kind and content of a clause, ("", None) where it is not an object with one key."""
    if isinstance(value, dict) and len(value) == 1:
        kind, inner = next(iter(value.items()))
        return kind, inner
    return "", None
