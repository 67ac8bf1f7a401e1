"""Add an expansion beside the clauses that carry the user's words. The original clause is always kept, whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from querylift.plugin.dsl.clauses import Clause, Leaf, Path, rounded
from querylift.plugin.dsl.find import Found
from querylift.plugin.dsl.skip import Skip
from querylift.plugin.dsl.text import count_tokens
from querylift.plugin.expansion import Expansion, WeightedTerm
from querylift.plugin.policy import Policy

_Item = TypeVar("_Item")
UNKNOWN_FIELDS = 32
"""How many fields a clause is taken to search where it names none or a pattern.

Taken too low, the engine refuses the search, or, where several indices are searched, leaves out the wide one's hits.
"""


def rewrite(body: dict[str, Any], found: Found, expansion: Expansion, policy: Policy) -> dict[str, Any]:
    """A new body with `expansion` beside each clause of `found`; `body` itself is not changed.

    Terms become term clauses of their field; where no clause searches it, the words that they are made of are matched instead.
    Raises Skip("empty") where such words are not known either, and Skip("too-many-clauses") where not one word of the
    expansion fits into the policy's clauses.
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
            yield leaf, leaf.template(expansion.text, weight * leaf.boost)
        return
    first = _searching(found, expansion.field)
    if first is not None:
        yield first, _terms(expansion, weight * first.boost * first.field_boost(expansion.field))
        return
    surfaced = [term for term in expansion.terms if term.surface]
    for leaf in found.leaves if surfaced else ():
        yield leaf, _surfaces(leaf, surfaced, weight * leaf.boost)


def _searching(found: Found, field: str) -> Leaf | None:
    """The first clause that searches `field`, so that weighted terms count once however many clauses there are."""
    return next((leaf for leaf in found.leaves if leaf.searches(field)), None)


def _terms(expansion: Expansion, weight: float) -> Clause:
    """Boosted term clauses; the heaviest term gets `weight`, the others in proportion."""
    top = max(t.weight for t in expansion.terms)
    return {
        "bool": {
            "should": [
                {"term": {expansion.field: {"value": t.term, "boost": rounded(weight * t.weight / top)}}}
                for t in expansion.terms
            ]
        }
    }


def _surfaces(leaf: Leaf, terms: Sequence[WeightedTerm], weight: float) -> Clause:
    """Boosted clauses of the leaf's own kind, one for each term's word; weights as in `_terms`."""
    top = max(t.weight for t in terms)
    return {"bool": {"should": [leaf.template(t.surface, weight * t.weight / top) for t in terms]}}


def _bounded(expansion: Expansion, found: Found, policy: Policy) -> Expansion:
    """`expansion` cut so that its words x the fields searched stay within the policy's clauses.

    The user's own words count under the engine's limit too: with them it may be twice the policy's clauses, no more.
    """
    width = sum(_width(leaf) for leaf in found.leaves)
    left = min(policy.max_clauses, 2 * policy.max_clauses - count_tokens(found.text) * width)
    if expansion.terms:
        searched = _searching(found, expansion.field) is not None
        terms = list(_fitting(left, expansion.terms, lambda t: 1 if searched else count_tokens(t.surface) * width))
        if not terms:
            raise Skip("too-many-clauses")
        return Expansion(terms=tuple(terms), field=expansion.field)
    if count_tokens(expansion.text) <= left // width:
        return expansion
    words = list(_fitting(left // width, expansion.text.split(), count_tokens))
    if not words:
        raise Skip("too-many-clauses")
    return Expansion(text=" ".join(words))


def _fitting(room: int, items: Iterable[_Item], cost: Callable[[_Item], int]) -> Iterator[_Item]:
    """The first `items`, as many as cost no more than `room`."""
    for item in items:
        room -= cost(item)
        if room < 0:
            return
        yield item


def _width(leaf: Leaf) -> int:
    """How many clauses one word becomes."""
    if leaf.parts:
        return sum(_width(part) for part in leaf.parts)
    return sum(UNKNOWN_FIELDS if "*" in field else 1 for field in leaf.fields) or UNKNOWN_FIELDS


def _wrapped(clause: Clause, added: Clause, *, widen: bool) -> Clause:
    """The original and the addition: both forms keep the original whole."""
    if widen:
        return {"bool": {"should": [clause, added], "minimum_should_match": 1}}
    return {"bool": {"must": [clause], "should": [added]}}


def _counts_hits(body: dict[str, Any]) -> bool:
    """Whether something in the request counts or groups the hits, so that their number must stay."""
    return any(key in body for key in ("aggs", "aggregations", "collapse")) or "collapse" in _standard(body)


def _with_highlight(out: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    """Highlight what the original query matched, unless the request says what to highlight."""
    highlight = original.get("highlight")
    query = original.get("query") or _standard(original).get("query")
    if not isinstance(highlight, dict) or "highlight_query" in highlight or query is None:
        return out
    return out | {"highlight": highlight | {"highlight_query": query}}


def _standard(body: dict[str, Any]) -> dict[str, Any]:
    """The content of the standard retriever at the top, {} where there is none."""
    retriever = body.get("retriever")
    inner = retriever.get("standard") if isinstance(retriever, dict) else None
    return inner if isinstance(inner, dict) else {}


def _replaced(value: Any, path: Path, change: Any) -> Any:
    """A copy of `value` along `path`, with what stands at its end changed; everything off the path is shared."""
    if not path:
        return change(value)
    key, rest = path[0], path[1:]
    if isinstance(value, list):
        assert isinstance(key, int)
        return [_replaced(item, rest, change) if i == key else item for i, item in enumerate(value)]
    return {name: _replaced(item, rest, change) if name == key else item for name, item in value.items()}
