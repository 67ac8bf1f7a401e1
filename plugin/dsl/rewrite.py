"""Add an expansion beside the leaves of a search. The original leaf is always kept whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from querylift.plugin.dsl.clauses import Clause, ClausePath, Leaf, round_weight
from querylift.plugin.dsl.query_text import count_tokens
from querylift.plugin.dsl.user_query import UserQuery
from querylift.plugin.expansion import Expansion, WeightedTerm
from querylift.plugin.outcome import Skip
from querylift.plugin.policy import Policy

_Item = TypeVar("_Item")
UNKNOWN_FIELDS = 32
"""How many fields a clause is assumed to search when it names none, or a pattern.

When the number is too low, the engine refuses the search. In a search over several indices, it drops the hits of the
index with the most fields.
"""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewritten body. `boost_reason` says why mode `widen` was served as `boost`: a key of outcome.REASONS, or empty."""

    body: dict[str, Any]
    boost_reason: str = ""

    def __repr__(self) -> str:
        return f"Rewrite(boost_reason={self.boost_reason!r})"


def add_expansion(body: dict[str, Any], user_query: UserQuery, expansion: Expansion, policy: Policy) -> dict[str, Any]:
    """Return a new body with `expansion` beside each leaf of `user_query`. `body` itself does not change.

    Terms become term clauses of their field. When no leaf searches that field, their surface words are matched instead.
    Raises Skip("empty") when no surface word is known either. Raises Skip("too-many-clauses") when not one word of the
    expansion fits into the policy's number of clauses.
    """
    return rewrite_search(body, user_query, expansion, policy).body


def rewrite_search(body: dict[str, Any], user_query: UserQuery, expansion: Expansion, policy: Policy) -> Rewrite:
    """Do what `add_expansion` does, and also say whether the mode was kept."""
    limited_expansion = _limit_expansion(expansion, user_query, policy)
    additions = list(_build_additions(user_query, limited_expansion, policy.weight))
    if not additions:
        raise Skip("empty")
    mode = "boost" if _needs_same_hits(body) else policy.mode
    rewritten: Any = body
    is_widened = False
    for leaf, addition in additions:
        # A leaf that sets how many words must match is never widened.
        widens_leaf = mode == "widen" and not leaf.sets_required_matches
        is_widened = is_widened or widens_leaf
        combine = _combine_to_widen if widens_leaf else _combine_to_boost
        rewritten = _replace_at_path(rewritten, leaf.path, combine, addition)
    boost_reason = ""
    if policy.mode == "widen" and not is_widened:
        boost_reason = "required-words" if mode == "widen" else "same-hits"
    return Rewrite(_add_highlight_query(rewritten, body), boost_reason)


def _build_additions(user_query: UserQuery, expansion: Expansion, weight: float) -> Iterator[tuple[Leaf, Clause]]:
    """Yield each leaf that is expanded, with the clause that goes beside it."""
    if expansion.text:
        for leaf in user_query.leaves:
            yield leaf, leaf.build_expansion_clause(expansion.text, weight * leaf.boost)
        return
    leaf_by_field = _find_leaf_of_each_field(user_query, expansion)
    if leaf_by_field:
        yield from _build_term_additions(user_query, expansion, leaf_by_field, weight)
        return
    terms = [term for term in expansion.terms if term.surface]
    for leaf in user_query.leaves if terms else ():
        yield leaf, _build_surface_clauses(leaf, terms, weight * leaf.boost)


def _find_leaf_of_each_field(user_query: UserQuery, expansion: Expansion) -> dict[str, Leaf]:
    """Return, for each field of the expansion's terms that the search searches, the first leaf that does so.

    With only one leaf, weighted terms count once in a field, however many leaves search it.
    """
    names = dict.fromkeys(name for term in expansion.terms for name in expansion.get_fields(term))
    return {name: leaf for name in names for leaf in reversed(user_query.leaves) if leaf.may_search_field(name)}


def _build_term_additions(
    user_query: UserQuery, expansion: Expansion, leaf_by_field: Mapping[str, Leaf], weight: float
) -> Iterator[tuple[Leaf, Clause]]:
    """Yield each leaf that gets boosted term clauses. The heaviest term gets `weight`, and the others get their share of it.

    A term of several fields goes into each of them that is searched, like the words of a most_fields clause.
    """
    placed_terms = [
        (name, term) for term in expansion.terms for name in expansion.get_fields(term) if name in leaf_by_field
    ]
    max_weight = max(term.weight for _, term in placed_terms)
    clauses_by_path: dict[ClausePath, list[Clause]] = {}
    for name, term in placed_terms:
        leaf = leaf_by_field[name]
        field_weight = weight * leaf.boost * leaf.get_field_boost(name)
        boost = round_weight(field_weight * term.weight / max_weight)
        clause = {"term": {name: {"value": term.term, "boost": boost}}}
        clauses_by_path.setdefault(leaf.path, []).append(clause)
    for leaf in user_query.leaves:
        if leaf.path in clauses_by_path:
            yield leaf, {"bool": {"should": clauses_by_path[leaf.path]}}


def _build_surface_clauses(leaf: Leaf, terms: Sequence[WeightedTerm], weight: float) -> Clause:
    """Return boosted clauses of the leaf's own kind, one for each surface word, weighted as the terms would be."""
    max_weight = max(term.weight for term in terms)
    return {
        "bool": {
            "should": [leaf.build_expansion_clause(term.surface, weight * term.weight / max_weight) for term in terms]
        }
    }


def _limit_expansion(expansion: Expansion, user_query: UserQuery, policy: Policy) -> Expansion:
    """Cut `expansion` so that its words times the searched fields stay within the policy's number of clauses.

    The engine's limit also counts the user's own words. All words together may take twice the policy's number.
    """
    clauses_per_word = sum(_count_clauses_per_word(leaf) for leaf in user_query.leaves)
    query_clauses = count_tokens(user_query.text) * clauses_per_word
    max_clauses = min(policy.max_clauses, 2 * policy.max_clauses - query_clauses)
    if expansion.terms:
        leaf_by_field = _find_leaf_of_each_field(user_query, expansion)
        if leaf_by_field:
            clause_counts = {
                term: sum(name in leaf_by_field for name in expansion.get_fields(term)) for term in expansion.terms
            }
            placed_terms = (term for term, count in clause_counts.items() if count)
            terms = list(_take_affordable(placed_terms, max_clauses, lambda term: clause_counts[term]))
        else:
            terms = list(
                _take_affordable(
                    expansion.terms, max_clauses, lambda term: count_tokens(term.surface) * clauses_per_word
                )
            )
        if not terms:
            raise Skip("too-many-clauses")
        return replace(expansion, terms=tuple(terms))
    max_words = max_clauses // clauses_per_word
    if count_tokens(expansion.text) <= max_words:
        return expansion
    words = list(_take_affordable(expansion.text.split(), max_words, count_tokens))
    if not words:
        raise Skip("too-many-clauses")
    return Expansion(text=" ".join(words))


def _take_affordable(items: Iterable[_Item], max_cost: int, compute_cost: Callable[[_Item], int]) -> Iterator[_Item]:
    """Yield the first items, as long as their costs add up to at most `max_cost`."""
    for item in items:
        max_cost -= compute_cost(item)
        if max_cost < 0:
            return
        yield item


def _count_clauses_per_word(leaf: Leaf) -> int:
    """Return the number of clauses that the engine makes of one word."""
    if leaf.parts:
        return sum(_count_clauses_per_word(part) for part in leaf.parts)
    return sum(UNKNOWN_FIELDS if "*" in field else 1 for field in leaf.fields) or UNKNOWN_FIELDS


def _combine_to_boost(clause: Clause, addition: Clause) -> Clause:
    return {"bool": {"must": [clause], "should": [addition]}}


def _combine_to_widen(clause: Clause, addition: Clause) -> Clause:
    return {"bool": {"should": [clause, addition], "minimum_should_match": 1}}


def _needs_same_hits(body: dict[str, Any]) -> bool:
    """Whether the search counts or groups its hits, so that an expansion must not add hits."""
    return any(key in body for key in ("aggs", "aggregations", "collapse")) or "collapse" in _get_standard_retriever(
        body
    )


def _add_highlight_query(rewritten: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    """Make the engine highlight the words of the original query, unless the search has a highlight_query already."""
    highlight = original.get("highlight")
    query = original.get("query") or _get_standard_retriever(original).get("query")
    if not isinstance(highlight, dict) or "highlight_query" in highlight or query is None:
        return rewritten
    return rewritten | {"highlight": highlight | {"highlight_query": query}}


def _get_standard_retriever(body: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the standard retriever at the top of the body, {} when there is none."""
    retriever = body.get("retriever")
    content = retriever.get("standard") if isinstance(retriever, dict) else None
    return content if isinstance(content, dict) else {}


def _replace_at_path(
    value: Any, path: ClausePath, combine: Callable[[Clause, Clause], Clause], addition: Clause
) -> Any:
    """Return a copy of `value` in which the clause at `path` is combined with `addition`. The rest is shared."""
    if not path:
        return combine(value, addition)
    key, inner_path = path[0], path[1:]
    if isinstance(value, list):
        assert isinstance(key, int)
        return [
            _replace_at_path(item, inner_path, combine, addition) if i == key else item for i, item in enumerate(value)
        ]
    return {
        name: _replace_at_path(item, inner_path, combine, addition) if name == key else item
        for name, item in value.items()
    }
