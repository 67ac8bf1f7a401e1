"""Which texts are natural language that an expansion can help, and which must be left as typed."""

from __future__ import annotations

import re

from plugin.dsl.skip import Skip

_QUOTED = re.compile(r"""["“”„«»]|(?:^|\s)'[^']+'(?:\s|$)""")
_WILDCARD = re.compile(r"\w[*]|[*]\w|\w\?\w|^[*?]+$")
_WORD = re.compile(r"[^\W\d_]{2,}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_TOKEN_OF_LETTERS = re.compile(r"[^\w]*[^\W\d_]+(?:[-'’/&][^\W\d_]+)*[^\w]*\Z")
# Anything that the two query-string syntaxes read as more than a word. An inner hyphen or apostrophe is plain.
_QUERY_STRING_SYNTAX = re.compile(r"""[+=&|><!(){}\[\]^"~*?:\\/]|(?:^|\s)-|-(?:\s|$)|\b(?:AND|OR|NOT|TO)\b""")
_SIMPLE_SYNTAX = re.compile(r"""[+|"*()~\\]|(?:^|\s)-|-(?:\s|$)""")


def check(text: str, *, max_words: int) -> None:
    """Raise Skip where `text` is quoted, has wildcards, looks like an id or a code, or is longer than `max_words`."""
    if len(text) > max_words * 40 or len(text.split()) > max_words:
        raise Skip("long")
    if _QUOTED.search(text):
        raise Skip("quoted")
    if _WILDCARD.search(text):
        raise Skip("wildcard")
    if not any(_is_word(token) for token in text.split()):
        raise Skip("code")


def check_plain(kind: str, text: str) -> None:
    """Raise Skip where a query_string or simple_query_string text uses the syntax of its kind."""
    syntax = _QUERY_STRING_SYNTAX if kind == "query_string" else _SIMPLE_SYNTAX
    if syntax.search(text):
        raise Skip("operators")


def _is_word(token: str) -> bool:
    """Whether `token` is a word of a language: letters, not an all-digits, mixed or under_scored code."""
    return bool(_TOKEN_OF_LETTERS.match(token) and _WORD.search(token)) or bool(_UNSPACED.search(token))


_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
