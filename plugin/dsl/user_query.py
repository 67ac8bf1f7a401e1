"""Decide what the user typed, and which clauses an expansion goes beside.

A search may hold several texts. They are one query when every clause holds the same text, or a part of it in a clause
that carries no expansion. Filters are told apart first: by the policy's fields, by fields that cannot be analysed text,
and by values that look like a code beside a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from querylift.plugin.dsl import clauses
from querylift.plugin.dsl.clause_walk import MAX_DEPTH, ClauseWalk
from querylift.plugin.dsl.clauses import Leaf
from querylift.plugin.dsl.exact_fields import find_exact_fields, is_exact_field
from querylift.plugin.dsl.fixed_texts import FixedText
from querylift.plugin.dsl.query_text import check_query_text, looks_like_filter_value
from querylift.plugin.dsl.search_checks import check_search
from querylift.plugin.dsl.url_parameters import UrlParameters
from querylift.plugin.outcome import Skip
from querylift.plugin.policy import Policy

MAX_LEAVES = 16

__all__ = ["MAX_DEPTH", "MAX_LEAVES", "Leaf", "UserQuery", "find_user_query"]


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
    walk = ClauseWalk()
    leaves = list(walk.walk_body(body))
    fixed_texts = walk.fixed_texts
    if not leaves:
        raise Skip(walk.skip_reason or "no-text")
    if policy.fields:
        narrowed_leaves = (leaf.narrow_to_fields(policy.fields) for leaf in leaves)
        leaves = [leaf for leaf in narrowed_leaves if leaf is not None]
        fixed_texts = [text for text in fixed_texts if _may_search(text, policy.fields)]
    if not leaves:
        raise Skip("fields")
    exact_fields = find_exact_fields(body)
    leaves = [leaf for leaf in leaves if not _searches_only_exact_fields(leaf.fields, exact_fields)]
    fixed_texts = [text for text in fixed_texts if not _searches_only_exact_fields(text.fields, exact_fields)]
    if not leaves:
        raise Skip("no-text")
    user_query = _build_user_query(_take_leaves_of_query(leaves), policy)
    _check_fixed_texts(fixed_texts, user_query)
    return user_query


def _take_leaves_of_query(leaves: list[Leaf]) -> list[Leaf]:
    """Return the leaves of the one text that is not a filter's value. Raises Skip when there is not exactly one.

    A value is a filter's only beside another text, and in fields that the other text is not searched in.
    """
    if len({leaf.text for leaf in leaves}) == 1:
        return leaves
    query_leaves = [leaf for leaf in leaves if not looks_like_filter_value(leaf.text)]
    filter_leaves = [leaf for leaf in leaves if looks_like_filter_value(leaf.text)]
    if len({leaf.text for leaf in query_leaves}) != 1 or any(
        _share_field(leaf.fields, query_leaves) for leaf in filter_leaves
    ):
        raise Skip("several-texts")
    return query_leaves


def _check_fixed_texts(fixed_texts: Iterable[FixedText], user_query: UserQuery) -> None:
    """Raise Skip when a clause that carries no expansion holds words of the user that the leaves do not hold."""
    for fixed_text in fixed_texts:
        if fixed_text.is_part_of(user_query.text):
            continue
        may_be_filter = fixed_text.is_term or looks_like_filter_value(fixed_text.text)
        if not may_be_filter or _share_field(fixed_text.fields, user_query.leaves):
            raise Skip("several-texts")


def _build_user_query(leaves: Sequence[Leaf], policy: Policy) -> UserQuery:
    """Raise Skip when the leaves are too many, or hold a text that must stay as typed."""
    if len(leaves) > MAX_LEAVES:
        raise Skip("too-many-clauses")
    if any(leaf.uses_syntax for leaf in _iterate_with_parts(leaves)):
        raise Skip("operators")
    text = leaves[0].text
    check_query_text(text, max_words=policy.max_query_words)
    return UserQuery(text, tuple(leaves))


def _may_search(fixed_text: FixedText, listed_fields: tuple[str, ...]) -> bool:
    """Whether a clause may search one of the listed fields. A clause that names no field may search any."""
    return not fixed_text.fields or any(
        clauses.matches_listed_field(field, listed) for field in fixed_text.fields for listed in listed_fields
    )


def _searches_only_exact_fields(fields: Iterable[str], exact_fields: frozenset[str]) -> bool:
    names = [clauses.strip_boost(field) for field in fields]
    return bool(names) and all(is_exact_field(name, exact_fields) for name in names)


def _share_field(fields: tuple[str, ...], leaves: Iterable[Leaf]) -> bool:
    """Whether a leaf may search one of the fields. A clause that names no field, or a pattern, may search any."""
    names = [clauses.strip_boost(field) for field in fields]
    return not names or any("*" in name or leaf.may_search_field(name) for leaf in leaves for name in names)


def _iterate_with_parts(leaves: Iterable[Leaf]) -> Iterator[Leaf]:
    for leaf in leaves:
        yield leaf
        yield from _iterate_with_parts(leaf.parts)
