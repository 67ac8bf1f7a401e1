"""Add an expansion beside the clauses that carry the user's words. The original clause is always kept, whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plugin.dsl.clauses import Clause, Leaf, Path, bare, covers
from plugin.dsl.find import Found
from plugin.dsl.skip import Skip
from plugin.expansion import Expansion
from plugin.policy import Policy

UNKNOWN_FIELDS = 8
"""How many fields a clause is taken to search where it names none or a pattern."""


def rewrite(body: dict[str, Any], found: Found, expansion: Expansion, policy: Policy) -> dict[str, Any]:
    """A new body with `expansion` beside each clause of `found`; `body` itself is not changed.

    Raises Skip("empty") where no clause searches the field that the expansion's terms belong to.
    """
    bounded = _bounded(expansion, found, policy)
    form = "boost" if _counts_hits(body) else policy.mode
    out: Any = body
    additions = list(_additions(found, bounded, policy.weight))
    if not additions:
        raise Skip("empty")
    for leaf, added in additions:
        widen = form == "widen" and not leaf.demands  # one that sets how many words must match is never widened
        out = _replaced(out, leaf.path, lambda clause, a=added, w=widen: _wrapped(clause, a, widen=w))
    return _with_highlight(out, body)


def _additions(found: Found, expansion: Expansion, weight: float) -> Iterator[tuple[Leaf, Clause]]:
    if expansion.text:
        for leaf in found.leaves:
            yield leaf, leaf.template(expansion.text, _rounded(weight * leaf.boost))
    else:
        searching = _searching(found, expansion.field)
        if searching is not None:
            yield searching, _terms(expansion, weight * searching.boost)


def _searching(found: Found, field: str) -> Leaf | None:
    """The first clause that searches `field`, so that weighted terms count once however many clauses there are."""
    for leaf in found.leaves:
        if not leaf.fields or any(covers(named, field) or field.startswith(bare(named) + ".") for named in leaf.fields):
            return leaf
    return None


def _terms(expansion: Expansion, weight: float) -> Clause:
    """Boosted term clauses; the heaviest term gets `weight`, the others in proportion."""
    top = expansion.terms[0].weight
    return {
        "bool": {
            "should": [
                {"term": {expansion.field: {"value": t.term, "boost": _rounded(weight * t.weight / top)}}}
                for t in expansion.terms
            ]
        }
    }


def _bounded(expansion: Expansion, found: Found, policy: Policy) -> Expansion:
    """`expansion` cut so that its words x the fields searched stay within the policy's clauses."""
    if expansion.terms:
        return Expansion(terms=expansion.terms[: policy.max_clauses], field=expansion.field)
    fields = sum(_width(leaf) for leaf in found.leaves)
    words = expansion.text.split()[: max(1, policy.max_clauses // fields)]
    return Expansion(text=" ".join(words))


def _width(leaf: Leaf) -> int:
    return sum(UNKNOWN_FIELDS if "*" in field else 1 for field in leaf.fields) or UNKNOWN_FIELDS


def _wrapped(clause: Clause, added: Clause, *, widen: bool) -> Clause:
    """The original and the addition: both forms keep the original whole."""
    if widen:
        return {"bool": {"should": [clause, added], "minimum_should_match": 1}}
    return {"bool": {"must": [clause], "should": [added]}}


def _counts_hits(body: dict[str, Any]) -> bool:
    """Whether something in the request counts or groups the hits, so that their number must stay."""
    return any(key in body for key in ("aggs", "aggregations", "collapse"))


def _with_highlight(out: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    """Highlight what the original query matched, unless the request says what to highlight."""
    highlight = original.get("highlight")
    query = original.get("query") or _standard_query(original)
    if not isinstance(highlight, dict) or "highlight_query" in highlight or query is None:
        return out
    return out | {"highlight": highlight | {"highlight_query": query}}


def _standard_query(body: dict[str, Any]) -> Any:
    retriever = body.get("retriever")
    standard = retriever.get("standard") if isinstance(retriever, dict) else None
    return standard.get("query") if isinstance(standard, dict) else None


def _replaced(value: Any, path: Path, change: Any) -> Any:
    """A copy of `value` along `path`, with what stands at its end changed; everything off the path is shared."""
    if not path:
        return change(value)
    key, rest = path[0], path[1:]
    if isinstance(value, list):
        assert isinstance(key, int)
        return [_replaced(item, rest, change) if i == key else item for i, item in enumerate(value)]
    return {name: _replaced(item, rest, change) if name == key else item for name, item in value.items()}


def _rounded(weight: float) -> float:
    """Six decimals: enough to rank by, short to read; never rounded down to zero."""
    return max(round(weight, 6), 1e-6)
