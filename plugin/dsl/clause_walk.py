"""Walk over the clauses of a search that score, and collect those that hold text.

Only clauses that score are entered: bool.must and bool.should, dis_max, the clauses of `WRAPPERS`, the standard
retriever (alone or under rrf) and the parts of a top-level hybrid. All others are passed over, so an expansion never
gets into a filter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from querylift.plugin.dsl import clauses
from querylift.plugin.dsl.clauses import ClausePath, Leaf
from querylift.plugin.dsl.fixed_texts import FixedText, read_fixed_texts
from querylift.plugin.dsl.search_checks import contains_key, get_only_item, sorts_by_score
from querylift.plugin.outcome import Skip

MAX_DEPTH = 12
"""Compound clauses around a leaf. Elasticsearch 9 takes 29, and OpenSearch as many as its stack holds. A rewrite adds up
to three."""
_MAX_TEXTS = 256
"""The walk gives up after so many texts: it must not take longer than a search."""
WRAPPERS = {
    "function_score": "query",
    "script_score": "query",
    "nested": "query",
    "boosting": "positive",
    "pinned": "organic",
    "rule": "organic",
    "rule_query": "organic",
}
"""Compound clauses with one clause that scores the query, and the key of that clause."""


class ClauseWalk:
    """One pass over the clauses that score.

    `fixed_texts` are the texts of clauses that carry no expansion. `skip_reason` says why a clause was passed over, if
    one was.
    """

    def __init__(self) -> None:
        self.skip_reason: str | None = None
        self.fixed_texts: list[FixedText] = []
        self._text_count = 0

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
        elif isinstance(content, dict) and kind in ("bool", "dis_max", *WRAPPERS):
            yield from self._walk_compound(kind, content, (*path, kind), depth)
        else:
            if kind in clauses.PHRASE_CLAUSES:
                self.skip_reason = self.skip_reason or "phrase"
            self._collect_fixed_texts(kind, content)

    def _read_leaf(self, kind: str, content: Any, path: ClausePath) -> Iterator[Leaf]:
        leaf = clauses.LEAF_READERS[kind](content, path)
        if leaf is not None:
            self._count_text()
            yield leaf
            return
        if clauses.has_phrase_type(content):
            self.skip_reason = self.skip_reason or "phrase"
        self._collect_fixed_texts(kind, content)

    def _collect_fixed_texts(self, kind: str, content: Any) -> None:
        for fixed_text in read_fixed_texts(kind, content):
            self._count_text()
            self.fixed_texts.append(fixed_text)

    def _count_text(self) -> None:
        self._text_count += 1
        if self._text_count > _MAX_TEXTS:
            raise Skip("too-many-clauses")

    def _walk_compound(self, kind: str, content: dict[str, Any], path: ClausePath, depth: int) -> Iterator[Leaf]:
        if kind == "bool":
            yield from self._walk_bool(content, path, depth)
        elif kind == "dis_max":
            yield from self._walk_dis_max(content, path, depth)
        elif "min_score" in content:
            self.skip_reason = self.skip_reason or "min-score"
        elif contains_key(content.get("inner_hits"), "highlight"):
            self.skip_reason = self.skip_reason or "highlight"
        else:
            yield from self._walk_clause(content.get(WRAPPERS[kind]), (*path, WRAPPERS[kind]), depth + 1)

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
    return are_direct and len({part.text for part in parts}) == 1
