"""Whether the engine took an expanded search, read off the start of its answer.

A refusal can be a status, one answer of an `_msearch`, or a shard that failed within an answer of status 200.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from typing import Any

STATUSES = frozenset({400, 500})
"""With these an engine refuses a query as such. Not 429 and 503: sending more would add to its load."""
HEAD_BYTES = 4096
"""How much of a search's answer is looked at: `_shards` stands before the hits."""
MAX_HELD_BYTES = 8_388_608
"""How much of an `_msearch` answer is held back; of a longer one only the status is looked at."""
_MAX_OPENED_BYTES = 4 * MAX_HELD_BYTES

_FAILED_SHARDS = re.compile(rb'"_shards"\s*:\s*\{[^{}]*?"failed"\s*:\s*[1-9]')
_SUSPECT = re.compile(rb'"status"\s*:\s*(?:400|500)|"failed"\s*:\s*[1-9]')


def shards_failed(head: bytes, encoding: bytes) -> bool:
    """Whether the first bytes of a search's answer say that a shard failed, so that hits may be lost."""
    return _FAILED_SHARDS.search(_opened(head, encoding, HEAD_BYTES), 0, HEAD_BYTES) is not None


def refused(held: bytes, encoding: bytes, changed: Iterable[int]) -> list[int]:
    """Which of the `changed` searches of an `_msearch`, by position, were refused or lost a shard."""
    answers = _answers(held, encoding)
    return [i for i in changed if i < len(answers) and _is_refused(answers[i])]


def taken(held: bytes, encoding: bytes, positions: Iterable[int]) -> list[int]:
    """Which of these searches of an `_msearch` were answered in full. None of them where the answer cannot be read."""
    answers = _parsed(_opened(held, encoding, _MAX_OPENED_BYTES))
    return [i for i in positions if i < len(answers) and not _is_refused(answers[i])]


def _answers(held: bytes, encoding: bytes) -> list[Any]:
    """The answers of an `_msearch`; none where nothing in the text hints at a refusal, as parsing takes time."""
    text = _opened(held, encoding, _MAX_OPENED_BYTES)
    return _parsed(text) if _SUSPECT.search(text) else []


def _parsed(text: bytes) -> list[Any]:
    try:
        answers = json.loads(text)["responses"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return answers if isinstance(answers, list) else []


def _is_refused(answer: Any) -> bool:
    if not isinstance(answer, dict):
        return False
    shards = answer.get("_shards")
    return answer.get("status") in STATUSES or bool(isinstance(shards, dict) and shards.get("failed"))


def _opened(held: bytes, encoding: bytes, limit: int) -> bytes:
    """The text of what was held, as far as it goes, where the client asked for gzip."""
    if encoding != b"gzip":
        return held
    try:
        return zlib.decompressobj(wbits=31).decompress(held, limit)
    except zlib.error:
        return b""
