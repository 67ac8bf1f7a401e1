"""Decide which query texts may be expanded, and which must stay exactly as the user typed them."""

from __future__ import annotations

import re

from querylift.plugin.outcome import Skip
from querylift.plugin.words import COMBINING_MARKS, count_words

_MAX_ESCAPED_CHARS = 20_000
"""In a longer text, escaped signs are not looked for. That would cost time, and such a text is hardly ever expanded."""
_MAX_VALUE_CHARS = 100
"""A longer text is not taken for the value of a filter. Reading it would cost time."""
_QUOTATION_MARKS = re.compile(r"""["“”„«»‹›「」『』]""")
# After a digit the mark means inches. Between two letters it is part of a word, as in Hebrew abbreviations.
_MARK_OF_INCHES = re.compile(r"""(?<=[\d½¼¾⅓⅔⅛⅜⅝⅞])["”“]|(?<=[^\W\d_])"(?=[^\W\d_])""")
# A pair around words. An apostrophe before two digits ('90s) or around an n (rock 'n' roll) stands for what is left out.
_SINGLE_QUOTED = re.compile(r"""(?:^|[\s([{])['‘](?!\d\ds?\b|[nN]['’])[^'‘’\s](?:[^'‘’]|\b['’]\b)*['’](?!\w)""")
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
_ESCAPED_SIGN = re.compile(r"""\\([-+=&|><!(){}\[\]^"~*?:\\/])""")

_GROUP = re.compile(r"\A\s*\(([^()]*)\)\s*\Z")


def check_query_text(text: str, *, max_words: int) -> None:
    """Raise Skip when `text` is quoted, has wildcards, looks like an id or a code, or is longer than `max_words`.

    `querylift.plugin.words` says what counts as a word.
    """
    if len(text) > max_words * 40 or count_words(text) > max_words:
        raise Skip("long")
    if _is_quoted(text):
        raise Skip("quoted")
    if _WILDCARD.search(text):
        raise Skip("wildcard")
    if not any(_is_word(token) for token in text.split()):
        raise Skip("code")


def looks_like_filter_value(text: str) -> bool:
    """Whether `text` looks like a field's value: no word, at most three ASCII letters, one word in capitals, a boolean."""
    if len(text) > _MAX_VALUE_CHARS:
        return False
    tokens = text.split()
    if not any(_is_word(token) for token in tokens):
        return True
    return len(tokens) == 1 and (
        (text.isascii() and len(text) <= 3) or text.isupper() or text.lower() in ("true", "false")
    )


def read_query_text(kind: str, text: str) -> str:
    """Return the user's words in the `text` of a clause, with whitespace collapsed.

    Without the backslashes that applications put before the signs of query syntax, in any clause, and without a pair of
    brackets around the whole text of a query_string or simple_query_string clause.
    """
    return " ".join(_replace_escaped_signs(_strip_group(kind, text), r"\1").split())


def uses_query_syntax(kind: str, text: str) -> bool:
    """Whether a query_string or simple_query_string clause reads a part of `text` as syntax. Other kinds read none."""
    text = _replace_escaped_signs(_strip_group(kind, text), "x")
    if kind == "query_string":
        return bool(_QUERY_STRING_SYNTAX.search(text))
    if text.count('"') == 1:  # without a second one, the mark is plain in a simple_query_string
        text = text.replace('"', "")
    return kind == "simple_query_string" and bool(_SIMPLE_SYNTAX.search(text))


def count_tokens(text: str) -> int:
    """Return how many clauses an analyzer makes of `text` for one field. The number is an upper estimate.

    Each run of letters and digits counts one. So does each sign of a script that is written without spaces.
    """
    return len((_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text))


def _replace_escaped_signs(text: str, replacement: str) -> str:
    return _ESCAPED_SIGN.sub(replacement, text) if "\\" in text and len(text) <= _MAX_ESCAPED_CHARS else text


def _strip_group(kind: str, text: str) -> str:
    group = _GROUP.match(text) if kind in ("query_string", "simple_query_string") else None
    return group[1] if group else text


def _is_quoted(text: str) -> bool:
    """Whether the user put words into quotation marks. A mark of inches and an apostrophe are none."""
    return bool(_QUOTATION_MARKS.search(_MARK_OF_INCHES.sub("", text)) or _SINGLE_QUOTED.search(text))


def _is_word(token: str) -> bool:
    """Whether `token` is a word of a language. A code of digits, of letters with digits, or with underscores is not."""
    return bool(_WORD_TOKEN.match(token) and _WORD.search(token)) or bool(_UNSPACED.search(token))
