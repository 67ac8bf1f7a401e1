"""Find the hits in the text of a search's answer, so that they can be put into another order byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
HitId = tuple[str, str]
"""`_index` and `_id` of a hit."""


class UnreadableAnswer(Exception):
    """The answer is not the whole answer to a search, so its hits cannot be merged."""


@dataclass(frozen=True, slots=True)
class AnsweredHits:
    """The hits of one answer. `text` from `start` to `end` holds them all, and `hit_texts` holds each of them."""

    text: str
    start: int
    end: int
    hit_ids: tuple[HitId, ...]
    hit_texts: tuple[str, ...]

    def replace_hits(self, hit_texts: Sequence[str]) -> str:
        """Return the answer with other hits. Everything beside the hits stays as it is."""
        return f"{self.text[: self.start]}{','.join(hit_texts)}{self.text[self.end :]}"


def find_hits(text: str) -> AnsweredHits:
    """Return the hits of an answer. Raises UnreadableAnswer when it is partial, or when a hit has no id."""
    try:
        values = dict(_iterate_object(text, 0))
        if values["timed_out"].parsed is not False or values["_shards"].parsed["failed"] != 0:
            raise UnreadableAnswer("the answer is partial")
        hits = dict(_iterate_object(text, values["hits"].start))["hits"]
        items = list(_iterate_array(text, hits.start))
        hit_ids = tuple((item.parsed["_index"], item.parsed["_id"]) for item in items)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableAnswer("the answer has not the form of a search's answer") from error
    if len(set(hit_ids)) < len(hit_ids):
        raise UnreadableAnswer("a hit comes twice")
    start, end = (items[0].start, items[-1].end) if items else (hits.end - 1, hits.end - 1)
    return AnsweredHits(text, start, end, hit_ids, tuple(text[item.start : item.end] for item in items))


@dataclass(frozen=True, slots=True)
class _Value:
    """A parsed value, and where its text starts and ends."""

    parsed: Any
    start: int
    end: int


def _iterate_object(text: str, start: int) -> Iterator[tuple[str, _Value]]:
    """Yield the keys of a JSON object with their values. Raises ValueError."""
    position = _skip_sign(text, start, "{")
    if text.startswith("}", position):
        return
    while True:
        key = _read_value(text, position)
        value = _read_value(text, _skip_sign(text, key.end, ":"))
        yield key.parsed, value
        position = _skip_space(text, value.end)
        if text.startswith("}", position):
            return
        position = _skip_sign(text, position, ",")


def _iterate_array(text: str, start: int) -> Iterator[_Value]:
    """Yield the items of a JSON array. Raises ValueError."""
    position = _skip_sign(text, start, "[")
    if text.startswith("]", position):
        return
    while True:
        item = _read_value(text, position)
        yield item
        position = _skip_space(text, item.end)
        if text.startswith("]", position):
            return
        position = _skip_sign(text, position, ",")


def _read_value(text: str, start: int) -> _Value:
    parsed, end = _DECODER.raw_decode(text, start)
    return _Value(parsed, start, end)


def _skip_sign(text: str, start: int, sign: str) -> int:
    """Return the position of what follows `sign`, which must be the next sign after whitespace. Raises ValueError."""
    position = _skip_space(text, start)
    if not text.startswith(sign, position):
        raise ValueError(f"{sign} is missing at character {position}")
    return _skip_space(text, position + 1)


def _skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start
