"""Decide which query texts may be expanded, and which must stay exactly as the user typed them."""

from __future__ import annotations

import re

from querylift.plugin.expansion import COMBINING_MARKS
from querylift.plugin.outcome import Skip

_QUOTED = re.compile(r"""["“”„«»‹›「」『』]|(?:^|\s)(?:'[^']+'(?!\w)|‘)""")
_WILDCARD = re.compile(r"\w[*]|[*]\w|\w\?\w|^[*?]+$")
_LETTERS = rf"[^\W\d_](?:[^\W\d_]|[{COMBINING_MARKS}\u200c\u200d])*+"
# A token of letters. Hyphens and similar signs may join its parts. A path, a handle or a flag is not one.
_WORD_TOKEN = re.compile(rf"(?![/\\@$]|--)\W*+{_LETTERS}(?:[-'’/&,–—]{_LETTERS})*+\W*+\Z")
# Two letters, or one letter of a script in which one letter can be a word.
_WORD = re.compile(rf"[^\W\d_](?:[^\W\d_]|[{COMBINING_MARKS}])|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# In these scripts one token can be a sentence, with digits in it.
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_SIGN = r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_ASCII_TOKEN = re.compile(r"[^\W_]++")
_TOKEN = re.compile(rf"{_SIGN}|(?:(?!{_SIGN})[^\W_][{COMBINING_MARKS}\u200c\u200d]*+)++")
# What the two query-string syntaxes read as more than a word. A hyphen or an apostrophe inside a word is plain.
# In a query_string a single & or | is plain too, but ? is a wildcard even at the end of a question.
_QUERY_STRING_SYNTAX = re.compile(r"""[+=><!(){}\[\]^"~*?:\\/]|&&|\|\||(?:^|\s)-|-(?:\s|$)|\b(?:AND|OR|NOT)\b""")
_SIMPLE_SYNTAX = re.compile(r"""[+|"*()~\\]|(?:^|\s)-|-(?:\s|$)""")


def check_query_text(text: str, *, max_words: int) -> None:
    """Raise Skip when `text` is quoted, has wildcards, looks like an id or a code, or is longer than `max_words`."""
    if len(text) > max_words * 40 or len(text.split()) > max_words:
        raise Skip("long")
    if _QUOTED.search(text):
        raise Skip("quoted")
    if _WILDCARD.search(text):
        raise Skip("wildcard")
    if not any(_is_word(token) for token in text.split()):
        raise Skip("code")


def check_query_syntax(kind: str, text: str) -> None:
    """Raise Skip when the text of a query_string or simple_query_string clause uses the syntax of that kind."""
    syntax = _QUERY_STRING_SYNTAX if kind == "query_string" else _SIMPLE_SYNTAX
    if syntax.search(text):
        raise Skip("operators")


def count_tokens(text: str) -> int:
    """Return how many clauses an analyzer makes of `text` for one field. The number is an upper estimate.

    Each run of letters and digits counts one. So does each sign of a script that is written without spaces.
    """
    return len((_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text))


def _is_word(token: str) -> bool:
    """Whether `token` is a word of a language. A code of digits, of letters with digits, or with underscores is not."""
    return bool(_WORD_TOKEN.match(token) and _WORD.search(token)) or bool(_UNSPACED.search(token))
