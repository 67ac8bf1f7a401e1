"""Locate the clauses of a search that score the user's words.

Only clauses that score are entered: bool.must and bool.should, dis_max, function_score, nested, the standard retriever
(alone or under rrf) and the parts of a top-level hybrid. All others are passed over, so an expansion never gets into a
filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from querylift.plugin.dsl import clauses
from querylift.plugin.dsl.clauses import ClausePath, Leaf
from querylift.plugin.dsl.query_text import check_query_syntax, check_query_text
from querylift.plugin.dsl.search_checks import check_search, contains_key, get_only_item, sorts_by_score
from querylift.plugin.dsl.url_parameters import UrlParameters
from querylift.plugin.outcome import Skip
from querylift.plugin.policy import Policy

MAX_DEPTH = 12
"""Compound clauses around a leaf. Elasticsearch 9 takes 29, and OpenSearch as many as its stack holds. A rewrite adds up
to three."""
MAX_LEAVES = 16
_MAX_TEXT_CLAUSES = 256
"""The walk gives up after so many text clauses: it must not take longer than a search."""

__all__ = ["Leaf", "UserQuery", "find_user_query"]


@dataclass(frozen=True, slots=True)
class UserQuery:
    """The user's query as text, with whitespace collapsed, and every leaf that scores it. The repr omits `text`."""

    text: str
    leaves: tuple[Leaf, ...]

    def __repr__(self) -> str:
        return f"UserQuery({len(self.leaves)} clauses)"

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the leaves search, without boosts and without repetition. Empty when no leaf names one."""
        return tuple(dict.fromkeys(clauses.strip_boost(field) for leaf in self.leaves for field in leaf.fields))


def find_user_query(body: dict[str, Any], policy: Policy, url_parameters: UrlParameters | None = None) -> UserQuery:
    """Return the user's query and the leaves that an expansion can go beside.

    Raises Skip when the search should go to the engine unchanged.
    """
    check_search(body, url_parameters or UrlParameters(), policy)
    walk = _ClauseWalk()
    all_leaves = list(walk.walk_body(body))
    if not all_leaves:
        raise Skip(walk.skip_reason or "no-text")
    leaves = all_leaves
    if policy.fields:
        narrowed_leaves = (leaf.narrow_to_fields(policy.fields) for leaf in all_leaves)
        leaves = [leaf for leaf in narrowed_leaves if leaf is not None]
    if not leaves:
        raise Skip("fields")
    return _build_user_query(leaves, policy)


def _build_user_query(leaves: list[Leaf], policy: Policy) -> UserQuery:
    """Raise Skip when the leaves hold different texts, are too many, or hold a text that must stay as typed."""
    texts = {" ".join(leaf.text.split()) for leaf in leaves}
    if len(texts) > 1:
        raise Skip("several-texts")
    if len(leaves) > MAX_LEAVES:
        raise Skip("too-many-clauses")
    text = texts.pop()
    for leaf in _iterate_with_parts(leaves):
        if leaf.kind in ("query_string", "simple_query_string"):
            check_query_syntax(leaf.kind, leaf.text)
    check_query_text(text, max_words=policy.max_query_words)
    return UserQuery(text, tuple(leaves))


def _iterate_with_parts(leaves: Iterable[Leaf]) -> Iterator[Leaf]:
    for leaf in leaves:
        yield leaf
        yield from _iterate_with_parts(leaf.parts)


class _ClauseWalk:
    """One pass over the clauses that score. `skip_reason` says why a text clause was passed over, if one was."""

    def __init__(self) -> None:
        self.skip_reason: str | None = None
        self._text_clauses = 0

    def walk_body(self, body: dict[str, Any]) -> Iterator[Leaf]:
        """Yield the leaves of the query and of the retriever."""
        query = body.get("query")
        if isinstance(query, dict) and isinstance(query.get("hybrid"), dict) and len(query) == 1:
            yield from self._walk_clauses(query["hybrid"].get("queries"), ("query", "hybrid", "queries"), 1)
        elif query is not None:
            yield from self._walk_clause(query, ("query",), 0)
        if "retriever" in body:
            yield from self._walk_retriever(body["retriever"], ("retriever",), 0)

    def _walk_retriever(self, value: Any, path: ClausePath, depth: int) -> Iterator[Leaf]:
        kind, content = get_only_item(value)
        if not isinstance(content, dict):
            return
        if "min_score" in content:
            self.skip_reason = "min-score"
        elif kind == "standard" and not sorts_by_score(content.get("sort")):
            self.skip_reason = "sort"
        elif kind == "standard":
            yield from self._walk_clause(content.get("query"), (*path, "standard", "query"), depth + 1)
        elif kind == "rrf" and isinstance(content.get("retrievers"), list) and depth < 3:
            for i, retriever in enumerate(content["retrievers"]):
                yield from self._walk_retriever(retriever, (*path, "rrf", "retrievers", i), depth + 1)

    def _walk_clause(self, value: Any, path: ClausePath, depth: int) -> Iterator[Leaf]:
        kind, content = get_only_item(value)
        if depth > MAX_DEPTH:
            self.skip_reason = "too-deep"
        elif kind in clauses.LEAF_READERS:
            yield from self._read_leaf(kind, content, path)
        elif kind in clauses.PHRASE_CLAUSES:
            self.skip_reason = self.skip_reason or "phrase"
        elif isinstance(content, dict):
            yield from self._walk_compound(kind, content, (*path, kind), depth)

    def _read_leaf(self, kind: str, content: Any, path: ClausePath) -> Iterator[Leaf]:
        leaf = clauses.LEAF_READERS[kind](content, path)
        if leaf is not None:
            self._text_clauses += 1
            if self._text_clauses > _MAX_TEXT_CLAUSES:
                raise Skip("too-many-clauses")
            yield leaf
        elif clauses.has_phrase_type(content):
            self.skip_reason = self.skip_reason or "phrase"

    def _walk_compound(self, kind: str, content: dict[str, Any], path: ClausePath, depth: int) -> Iterator[Leaf]:
        if kind == "bool":
            yield from self._walk_bool(content, path, depth)
        elif kind == "dis_max":
            yield from self._walk_dis_max(content, path, depth)
        elif kind == "function_score":
            if "min_score" in content:
                self.skip_reason = self.skip_reason or "min-score"
            else:
                yield from self._walk_clause(content.get("query"), (*path, "query"), depth + 1)
        elif kind == "nested":
            if contains_key(content.get("inner_hits"), "highlight"):
                self.skip_reason = self.skip_reason or "highlight"
            else:
                yield from self._walk_clause(content.get("query"), (*path, "query"), depth + 1)

    def _walk_bool(self, content: dict[str, Any], path: ClausePath, depth: int) -> Iterator[Leaf]:
        """Yield the leaves of must and should.

        When the bool counts its should clauses, none of them may match more documents than before.
        """
        counts_should = clauses.requires_several_matches(content.get("minimum_should_match"))
        yield from self._walk_clauses(content.get("must"), (*path, "must"), depth + 1)
        for leaf in self._walk_clauses(content.get("should"), (*path, "should"), depth + 1):
            yield replace(leaf, sets_required_matches=True) if counts_should else leaf

    def _walk_clauses(self, value: Any, path: ClausePath, depth: int) -> Iterator[Leaf]:
        if isinstance(value, list):
            for i, clause in enumerate(value):
                yield from self._walk_clause(clause, (*path, i), depth)
        elif value is not None:
            yield from self._walk_clause(value, path, depth)

    def _walk_dis_max(self, content: dict[str, Any], path: ClausePath, depth: int) -> Iterator[Leaf]:
        """Yield one leaf when every part is a leaf with the same text, and the leaves of the parts otherwise."""
        queries = content.get("queries")
        parts = list(self._walk_clauses(queries, (*path, "queries"), depth + 1))
        merged_leaf = None
        if isinstance(queries, list) and len(parts) == len(queries) > 1 and _have_same_text(parts, path):
            merged_leaf = clauses.merge_dis_max(content, tuple(parts), path[:-1])
        yield from parts if merged_leaf is None else (merged_leaf,)


def _have_same_text(parts: list[Leaf], path: ClausePath) -> bool:
    """Whether all parts stand directly in the dis_max at `path` and hold the same text."""
    are_direct = all(len(part.path) == len(path) + 2 for part in parts)
    return are_direct and len({" ".join(part.text.split()) for part in parts}) == 1
