"""The user's words in clauses that score them but carry no expansion: phrases, spans, intervals, prefixes and the like.

They count when it is decided what the user typed, so that a part of the words is never taken for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from querylift.plugin.dsl.clauses import parse_fields
from querylift.plugin.dsl.search_checks import iterate_objects

_WORD = re.compile(r"\w+")
_BETWEEN_WILDCARDS = re.compile(r"[^*?]+")
_MAX_CHARS = 20_000
"""A longer text is no part of a query that is expanded. Comparing it would cost time."""


@dataclass(frozen=True, slots=True)
class FixedText:
    """Words in a clause that carries no expansion.

    `fields` are as the client wrote them, and empty when the clause names none. `is_term` is true for a clause that is
    a filter as often as a part of the query, such as `prefix`.
    """

    text: str
    fields: tuple[str, ...] = ()
    is_term: bool = False

    def __repr__(self) -> str:
        return f"FixedText(fields={self.fields})"

    def is_part_of(self, text: str) -> bool:
        """Whether `text` holds these words in this order, whatever their case and the signs between them."""
        return len(self.text) <= _MAX_CHARS and _fold_text(self.text) in _fold_text(text)


def read_fixed_texts(kind: str, content: Any) -> Iterator[FixedText]:
    """Yield the user's words in a clause of this kind. A clause with boost 0 only filters, and holds none."""
    if kind in _READERS:
        yield from _READERS[kind](content)


def _fold_text(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _read_one_field(content: Any, key: str = "query") -> Iterator[FixedText]:
    """Yield the text under `key` of a clause such as {"match_phrase": {"title": {"query": "..."}}}."""
    for field, options in _iterate_items(content):
        options = options if isinstance(options, dict) else {key: options}
        yield from _make_text(options, key, (field,))


def _read_several_fields(content: Any) -> Iterator[FixedText]:
    """Yield the text of a clause such as {"multi_match": {"query": "...", "fields": ["title"]}}."""
    if isinstance(content, dict):
        yield from _make_text(content, "query", parse_fields(content) or ())


def _read_term(content: Any) -> Iterator[FixedText]:
    """Yield the words of a clause such as {"wildcard": {"title": {"value": "gla*rt"}}}, cut at the wildcards."""
    for field, options in _iterate_items(content):
        options = options if isinstance(options, dict) else {"value": options}
        value = options.get("value", options.get("wildcard"))
        if isinstance(value, str) and options.get("boost") != 0:
            for part in _BETWEEN_WILDCARDS.finditer(value):
                yield FixedText(part[0], (field,), is_term=True)


def _read_intervals(content: Any) -> Iterator[FixedText]:
    for field, rule in _iterate_items(content):
        for options in iterate_objects(rule):
            for key in ("query", "prefix", "term"):
                yield from _make_text(options, key, (field,))


def _read_spans(content: Any) -> Iterator[FixedText]:
    """Yield the word of each span_term in a span clause."""
    for options in iterate_objects(content):
        for field, value in _iterate_items(options.get("span_term")):
            word = value.get("value", value.get("term")) if isinstance(value, dict) else value
            yield from _make_text({"word": word}, "word", (field,))


def _read_more_like_this(content: Any) -> Iterator[FixedText]:
    """Yield the texts in `like`. A document in `like` is not what a user typed."""
    if isinstance(content, dict):
        likes = content.get("like")
        for like in likes if isinstance(likes, list) else [likes]:
            yield from _make_text(content | {"like": like}, "like", parse_fields(content) or ())


_READERS: dict[str, Callable[[Any], Iterator[FixedText]]] = {
    **dict.fromkeys(("match", "match_phrase", "match_phrase_prefix", "match_bool_prefix", "common"), _read_one_field),
    **dict.fromkeys(("multi_match", "combined_fields", "query_string", "simple_query_string"), _read_several_fields),
    **dict.fromkeys(("prefix", "wildcard"), _read_term),
    **dict.fromkeys(("span_near", "span_or", "span_first", "span_within", "span_containing", "span_not"), _read_spans),
    "fuzzy": partial(_read_one_field, key="value"),
    "intervals": _read_intervals,
    "more_like_this": _read_more_like_this,
}


def _make_text(options: dict[str, Any], key: str, fields: tuple[str, ...]) -> Iterator[FixedText]:
    text = options.get(key)
    if isinstance(text, str) and text.strip() and options.get("boost") != 0:
        yield FixedText(text, fields)


def _iterate_items(value: Any) -> Iterator[tuple[str, Any]]:
    yield from value.items() if isinstance(value, dict) else ()
