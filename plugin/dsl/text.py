"""Which texts are natural language that an expansion can help, and which must be left as typed."""

from __future__ import annotations

import re

from querylift.plugin.dsl.skip import Skip
from querylift.plugin.expansion import MARKS

_QUOTED = re.compile(r"""["“”„«»‹›「」『』]|(?:^|\s)(?:'[^']+'(?!\w)|‘)""")
_WILDCARD = re.compile(r"\w[*]|[*]\w|\w\?\w|^[*?]+$")
_LETTERS = rf"[^\W\d_](?:[^\W\d_]|[{MARKS}\u200c\u200d])*+"
# Two letters, or one of a script that writes a word with one. No path, handle or flag; joined by hyphens and the like.
_WORD_TOKEN = re.compile(rf"(?![/\\@$]|--)\W*+{_LETTERS}(?:[-'’/&,–—]{_LETTERS})*+\W*+\Z")
_WORD = re.compile(rf"[^\W\d_](?:[^\W\d_]|[{MARKS}])|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# Scripts in which a token is a sentence, digits and all.
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_SIGN = r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_ASCII_TOKEN = re.compile(r"[^\W_]++")
_TOKEN = re.compile(rf"{_SIGN}|(?:(?!{_SIGN})[^\W_][{MARKS}\u200c\u200d]*+)++")
# Anything that the two query-string syntaxes read as more than a word. An inner hyphen or apostrophe is plain, and so
# are, in a query_string, a single & or |. There ? is a wildcard even at the end of a question.
_QUERY_STRING_SYNTAX = re.compile(r"""[+=><!(){}\[\]^"~*?:\\/]|&&|\|\||(?:^|\s)-|-(?:\s|$)|\b(?:AND|OR|NOT)\b""")
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


def count_tokens(text: str) -> int:
    """How many clauses an analyzer makes of `text` for one field, at a guess from above.

    One for each run of letters and digits, and one for each sign of a script that is written without spaces.
    """
    return len((_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text))


def _is_word(token: str) -> bool:
    """Whether `token` is a word of a language: letters, not an all-digits, mixed or under_scored code."""
    return bool(_WORD_TOKEN.match(token) and _WORD.search(token)) or bool(_UNSPACED.search(token))
