"""Add an expansion beside the leaves of a search. The original leaf is always kept whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from querylift.plugin.dsl.clauses import Clause, ClausePath, Leaf, round_weight
from querylift.plugin.dsl.document_clauses import (
    DOCUMENTS_PER_CLAUSE,
    DocumentPlace,
    build_document_clause,
    find_document_place,
)
from querylift.plugin.dsl.query_text import count_tokens
from querylift.plugin.dsl.user_query import UserQuery
from querylift.plugin.expansion import Expansion, WeightedTerm
from querylift.plugin.outcome import Skip
from querylift.plugin.policy import Policy
from querylift.plugin.words import find_sign_spans

_Item = TypeVar("_Item")
TERM_SHARE_BESIDE_DOCUMENTS = 0.75
"""Terms weigh less where documents are added too: as many queries gain, and fewer lose (docs/log.md)."""
UNKNOWN_FIELDS = 32
"""How many fields a clause is assumed to search when it names none, or a pattern.

When the number is too low, the engine refuses the search. In a search over several indices, it drops the hits of the
index with the most fields.
"""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewritten body.

    `boost_reason` says why mode `widen` was served as `boost`: a key of outcome.REASONS, or empty. `document_path` leads to
    the clause beside which the documents were added. It is empty when none were.
    """

    body: dict[str, Any]
    boost_reason: str = ""
    document_path: ClausePath = ()

    def __repr__(self) -> str:
        return f"Rewrite(boost_reason={self.boost_reason!r})"


@dataclass(slots=True)
class _Addition:
    """Clauses that go beside the clause at `path`. With `widens`, they may match documents that the clause does not."""

    path: ClausePath
    clauses: list[Clause]
    widens: bool


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
    mode = "boost" if _needs_same_hits(body) else policy.mode
    additions = [
        # A leaf that sets how many words must match is never widened.
        _Addition(leaf.path, [clause], widens=mode == "widen" and not leaf.sets_required_matches)
        for leaf, clause in _build_additions(user_query, limited_expansion, policy.weight)
    ]
    document_path: ClausePath = ()
    if limited_expansion.documents:
        place = find_document_place(body, user_query, widen=mode == "widen")
        document_path = place.path
        clause = build_document_clause(limited_expansion.documents, policy.document_weight * place.boost)
        _insert_documents(additions, place, clause, widens=mode == "widen" and place.can_widen)
    if not additions:
        raise Skip("empty")
    rewritten: Any = body
    for addition in additions:
        rewritten = _replace_at_path(rewritten, addition)
    boost_reason = ""
    if policy.mode == "widen" and not any(addition.widens for addition in additions):
        boost_reason = "required-words" if mode == "widen" else "same-hits"
    return Rewrite(_add_highlight_query(rewritten, body), boost_reason, document_path)


def _insert_documents(additions: list[_Addition], place: DocumentPlace, clause: Clause, *, widens: bool) -> None:
    """Put the documents beside the words of a leaf, or around all leaves: last, so that the other paths stay valid."""
    for addition in additions:
        if addition.path == place.path:
            addition.clauses.append(clause)
            return
    additions.append(_Addition(place.path, [clause], widens=widens))


def _build_additions(user_query: UserQuery, expansion: Expansion, weight: float) -> Iterator[tuple[Leaf, Clause]]:
    """Yield each leaf that is expanded, with the clause that goes beside it."""
    if not expansion.terms:
        for leaf in user_query.leaves if expansion.text else ():
            yield leaf, leaf.build_expansion_clause(expansion.text, weight * leaf.boost)
        return
    if expansion.documents:
        weight *= TERM_SHARE_BESIDE_DOCUMENTS
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

    The engine's limit also counts the user's own words. All words together may take twice the policy's number. Documents
    come first, because ten of them are one clause.
    """
    clauses_per_word = sum(_count_clauses_per_word(leaf) for leaf in user_query.leaves)
    query_clauses = count_tokens(user_query.text) * clauses_per_word
    max_clauses = min(policy.max_clauses, 2 * policy.max_clauses - query_clauses)
    documents = expansion.documents[: min(policy.documents, max(max_clauses, 0) * DOCUMENTS_PER_CLAUSE)]
    max_clauses -= math.ceil(len(documents) / DOCUMENTS_PER_CLAUSE)
    text = ""
    terms: tuple[WeightedTerm, ...] = ()
    if expansion.terms:
        terms = _cut_terms(expansion, user_query, max_clauses, clauses_per_word)
    elif expansion.text:
        text = _cut_text(expansion.text, max_clauses // clauses_per_word)
    if not (text or terms or documents):
        raise Skip("too-many-clauses" if expansion.terms or expansion.text else "empty")
    return Expansion(text=text, terms=terms, field=expansion.field if terms else "", documents=documents)


def _cut_terms(
    expansion: Expansion, user_query: UserQuery, max_clauses: int, clauses_per_word: int
) -> tuple[WeightedTerm, ...]:
    """Return the first terms that fit. A term takes a clause in each searched field, or those of its surface word."""
    leaf_by_field = _find_leaf_of_each_field(user_query, expansion)
    if leaf_by_field:
        clause_counts = {
            term: sum(name in leaf_by_field for name in expansion.get_fields(term)) for term in expansion.terms
        }
    else:
        clause_counts = {term: count_tokens(term.surface) * clauses_per_word for term in expansion.terms}
    terms = (term for term, count in clause_counts.items() if count or not leaf_by_field)
    return tuple(_take_affordable(terms, max_clauses, lambda term: clause_counts[term]))


def _cut_text(text: str, max_words: int) -> str:
    """Return the first words of `text`, at most `max_words` as the engine counts them.

    The engine counts each sign of a script without spaces, so that such a text is cut after a sign.
    """
    if count_tokens(text) <= max_words:
        return text
    spans = _take_affordable(find_sign_spans(text), max_words, lambda span: count_tokens(text[span[0] : span[1]]))
    return text[: max((end for _, end in spans), default=0)]


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


def _combine(clause: Clause, addition: _Addition) -> Clause:
    if addition.widens:
        return {"bool": {"should": [clause, *addition.clauses], "minimum_should_match": 1}}
    return {"bool": {"must": [clause], "should": addition.clauses}}


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


def _replace_at_path(value: Any, addition: _Addition) -> Any:
    """Return a copy of `value` in which the clause at the path of `addition` is combined with it. The rest is shared."""

    def copy_along(value: Any, path: ClausePath) -> Any:
        if not path:
            return _combine(value, addition)
        copy = value.copy()
        copy[path[0]] = copy_along(value[path[0]], path[1:])
        return copy

    return copy_along(value, addition.path)
