"""How many words a text has, also in scripts that put no spaces between words. Every limit in words counts by this rule.

A word is what stands between two spaces. In a script without spaces, a fixed number of signs counts as one word: two in
Chinese and Japanese, five in Thai, Lao, Khmer and Burmese. That is about the mean length of their words, so that a limit
keeps about as much text in every language. Marks above and below a sign count in Thai, as they do in Unicode. Korean has
spaces. A Latin word or a number between such signs counts as one word. Punctuation between them counts as none.

Standard library only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

HAN_SIGNS_PER_WORD = 2
"""Signs of Chinese and Japanese that count as one word."""
THAI_SIGNS_PER_WORD = 5
"""Signs of Thai, Lao, Khmer and Burmese that count as one word."""


def _build_combining_mark_ranges() -> str:
    """Return vowel signs, accents and the like as ranges of a character class, because `\\w` matches no mark."""
    marks = [i for i in (*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0)) if unicodedata.category(chr(i))[0] == "M"]
    ranges: list[tuple[int, int]] = []
    for mark in marks:
        if ranges and ranges[-1][1] == mark - 1:
            ranges[-1] = (ranges[-1][0], mark)
        else:
            ranges.append((mark, mark))
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in ranges)


COMBINING_MARKS = _build_combining_mark_ranges()
"""The inside of a character class, in a regular expression, that matches every combining mark."""
_KANA = r"\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HAN = rf"{_KANA}\u3005-\u3007\u3105-\u312f\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_THAI = r"\u0e01-\u0e3a\u0e40-\u0e5b\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"
_MARKS_AFTER = rf"[{COMBINING_MARKS}]*+"
_UNSPACED = re.compile(rf"[{_HAN}{_THAI}]")
_SPACED_WORD = re.compile(r"\S+")
_WORD = re.compile(
    rf"(?:[{_HAN}]{_MARKS_AFTER}){{1,{HAN_SIGNS_PER_WORD}}}"
    rf"|[{_THAI}]{{1,{THAI_SIGNS_PER_WORD}}}{_MARKS_AFTER}"
    rf"|(?:(?![{_HAN}{_THAI}])\S)+"
)
_SIGN_OR_WORD = re.compile(rf"[{_HAN}{_THAI}]{_MARKS_AFTER}|(?:(?![{_HAN}{_THAI}])\S)+")
_LETTER = re.compile(r"[^\W_]")


def is_unspaced(text: str) -> bool:
    """Whether `text` has a sign of a script that puts no spaces between words."""
    return not text.isascii() and bool(_UNSPACED.search(text))


def find_word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each word begins and ends in `text`."""
    for spaced_word in _SPACED_WORD.finditer(text):
        if not is_unspaced(spaced_word[0]):
            yield spaced_word.span()
            continue
        for word in _WORD.finditer(text, *spaced_word.span()):
            if _LETTER.search(word[0]):
                yield word.span()


def count_words(text: str) -> int:
    """Return the number of words."""
    return len(text.split()) if text.isascii() else sum(1 for _ in find_word_spans(text))


def take_first_words(text: str, count: int) -> str:
    """Return the first `count` words of `text` on one line, with the punctuation between them."""
    end = max((end for _, end in islice(find_word_spans(text), count)), default=0)
    return " ".join(text[:end].split())


def find_sign_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each word, and each sign of a script without spaces, begins and ends in `text`."""
    return (part.span() for part in _SIGN_OR_WORD.finditer(text))


def find_last_break(text: str, limit: int) -> int:
    """Return the last place up to `limit` at which `text` can be cut without cutting a word, 0 when there is none.

    A script without spaces can be cut between any two of its signs, but not before a combining mark.
    """
    return max((end for _, end in find_sign_spans(text) if end <= limit), default=0)


def split_long_text(text: str, max_chars: int) -> list[str]:
    """Return `text`, which has no spaces, in pieces of at most `max_chars`, cut where `find_last_break` cuts.

    A word between the signs that is longer than a whole piece is left out.
    """
    pieces = [""]
    for part in _SIGN_OR_WORD.findall(text):
        if len(part) > max_chars:
            pieces.append("")
        elif len(pieces[-1]) + len(part) > max_chars:
            pieces.append(part)
        else:
            pieces[-1] += part
    return [piece for piece in pieces if piece]
