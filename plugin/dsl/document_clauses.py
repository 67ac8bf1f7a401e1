"""The documents of an expansion as clauses, and the place in a search where they are added.

A search gets its documents once, however many leaves it has. They go beside the outermost clause that holds all leaves, so
that no leaf has to match first. They stay inside clauses that change the scores of what they hold, such as function_score,
because the weights of documents are on the scale of the text's own score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from querylift.plugin.dsl.clause_walk import WRAPPERS
from querylift.plugin.dsl.clauses import Clause, ClausePath, Leaf, parse_boost, round_weight
from querylift.plugin.dsl.search_checks import get_only_item
from querylift.plugin.dsl.user_query import UserQuery
from querylift.plugin.expansion import WeightedDocument

DOCUMENTS_PER_CLAUSE = 10
"""Documents that share one `ids` clause and so one boost. docs/log.md compares it with a clause for each document."""
_LIMITING_KEYS = ("filter", "must_not")


@dataclass(frozen=True, slots=True)
class DocumentPlace:
    """The path of the clause beside which documents are added.

    `boost` is the factor between the score of the text inside the clause and the score of the clause. `can_widen` says
    whether documents may become hits of their own there, without passing a filter of the search.
    """

    path: ClausePath
    boost: float
    can_widen: bool


def find_document_place(body: dict[str, Any], user_query: UserQuery, *, widen: bool) -> DocumentPlace:
    """Return where the documents of an expansion go. With `widen`, prefer a place where they may become hits."""
    scope = _find_scope(user_query.leaves[0].path)
    leaves = [leaf for leaf in user_query.leaves if leaf.path[: len(scope)] == scope]
    path = _descend(body, scope, leaves)
    clause = _get_clause(body, path)
    is_open = not any(leaf.sets_required_matches for leaf in user_query.leaves)
    can_widen = is_open and all(_is_unlimited(clause, leaf.path[len(path) :]) for leaf in leaves)
    if widen and is_open and not can_widen:
        for leaf in leaves:  # inside the bool with the filter, the filter holds for the documents too
            if not _crosses(clause, leaf.path[len(path) :], "nested"):
                return DocumentPlace(leaf.path, _get_leaf_boost(leaf), can_widen=True)
    boost = max(_get_leaf_boost(leaf) * _multiply_boosts(clause, leaf.path[len(path) :]) for leaf in leaves)
    return DocumentPlace(path, boost, can_widen)


def build_document_clause(documents: Sequence[WeightedDocument], weight: float) -> Clause:
    """Return a clause that adds to each document's score its own weight times `weight`. Ten documents share their mean."""
    groups = [documents[i : i + DOCUMENTS_PER_CLAUSE] for i in range(0, len(documents), DOCUMENTS_PER_CLAUSE)]
    return {"bool": {"should": [_build_ids_clause(group, weight) for group in groups]}}


def _build_ids_clause(group: Sequence[WeightedDocument], weight: float) -> Clause:
    mean_weight = sum(document.weight for document in group) / len(group)
    return {"ids": {"values": [document.doc_id for document in group], "boost": round_weight(weight * mean_weight)}}


def _find_scope(path: ClausePath) -> ClausePath:
    """Return the path of the query that a leaf belongs to: the whole query, a part of a hybrid, or a retriever's query."""
    if path[:3] == ("query", "hybrid", "queries"):
        return path[:4]
    if path[0] == "retriever":
        return path[: path.index("standard") + 2]
    return path[:1]


def _descend(body: dict[str, Any], scope: ClausePath, leaves: Sequence[Leaf]) -> ClausePath:
    """Return the path of the outermost clause of `scope` that only adds up scores and holds all leaves."""
    path = scope
    while True:
        kind, content = get_only_item(_get_clause(body, path))
        inner_path: ClausePath = ()
        if kind in WRAPPERS and kind != "nested":
            inner_path = (*path, kind, WRAPPERS[kind])
        elif kind == "bool" and isinstance(content, dict) and leaves[0].path[len(path) + 1] == "must":
            is_list = isinstance(content["must"], list)
            inner_path = leaves[0].path[: len(path) + (3 if is_list else 2)]
        if not inner_path or any(leaf.path[: len(inner_path)] != inner_path for leaf in leaves):
            return path
        path = inner_path


def _get_clause(body: Any, path: ClausePath) -> Any:
    for key in path:
        body = body[key]
    return body


def _is_unlimited(clause: Any, inner_path: ClausePath) -> bool:
    """Whether every document that matches at `inner_path` matches `clause`: no filter stands on the way."""
    for key in inner_path:
        kind, content = get_only_item(clause)
        if kind == "bool" and isinstance(content, dict):
            musts = content.get("must", [])
            has_other_must = isinstance(musts, list) and len(musts) > 1
            is_beside_must = bool(musts) and "must" not in inner_path[1:2]
            if any(name in content for name in _LIMITING_KEYS) or has_other_must or is_beside_must:
                return False
        clause, inner_path = clause[key], inner_path[1:]
    return True


def _crosses(clause: Any, inner_path: ClausePath, kind: str) -> bool:
    """Whether a clause of this kind stands between `clause`, itself included, and the end of `inner_path`."""
    for key in inner_path:
        if get_only_item(clause)[0] == kind:
            return True
        clause = clause[key]
    return False


def _multiply_boosts(clause: Any, inner_path: ClausePath) -> float:
    """Return the product of the boosts of `clause` and of the compound clauses down to `inner_path`."""
    product = 1.0
    for key in inner_path:
        _, content = get_only_item(clause)
        if isinstance(content, dict):
            product *= parse_boost(content) or 1.0
        clause = clause[key]
    return product


def _get_leaf_boost(leaf: Leaf) -> float:
    """Return the largest factor that the leaf gives to the score of one of its fields."""
    if leaf.parts:
        return leaf.boost * max(_get_leaf_boost(part) for part in leaf.parts)
    return leaf.boost * leaf.get_largest_field_boost()
