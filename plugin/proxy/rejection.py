"""Find out from the start of the engine's answer whether it rejected a rewrite.

A rejection can be a status, one answer of an `_msearch`, or a failed shard in an answer with status 200.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from typing import Any

from querylift.plugin.outcome import Outcome
from querylift.plugin.proxy.shard_report import MAX_TEXT_BYTES, OVERLOADED_SHARD

REJECTED = Outcome("error", "rejected")
ORIGINAL_FAILS = Outcome("skipped", "original-fails")
REJECTION_STATUSES = frozenset({400, 500})
"""With these statuses an engine refuses the query itself. 429 and 503 mean overload, and a second search would add to it."""
MAX_HELD_BYTES = 8_388_608
"""How much of an `_msearch` answer is held back. Of a longer one, only the status is examined."""

_POSSIBLE_REJECTION = re.compile(rb'"status"\s*:\s*(?:400|500)|"failed"\s*:\s*[1-9]')


def find_rejected_searches(held: bytes, encoding: bytes, rewritten_positions: Iterable[int]) -> list[int]:
    """Return the positions of those rewrites in an `_msearch` that were rejected."""
    text = _decompress(held, encoding, MAX_TEXT_BYTES)
    if not _POSSIBLE_REJECTION.search(text):  # parsing takes time
        return []
    answers = _parse_answers(text)
    return [i for i in rewritten_positions if i < len(answers) and _is_rejection(answers[i])]


def find_accepted_searches(held: bytes, encoding: bytes, positions: Iterable[int]) -> list[int]:
    """Return those `positions` of an `_msearch` that have a full answer. [] when the answer cannot be read."""
    answers = _parse_answers(_decompress(held, encoding, MAX_TEXT_BYTES))
    return [i for i in positions if i < len(answers) and not _is_rejection(answers[i])]


def _parse_answers(text: bytes) -> list[Any]:
    try:
        answers = json.loads(text)["responses"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return answers if isinstance(answers, list) else []


def _is_rejection(answer: Any) -> bool:
    if not isinstance(answer, dict):
        return False
    shards = answer.get("_shards")
    has_failed_shard = isinstance(shards, dict) and shards.get("failed")
    if has_failed_shard and OVERLOADED_SHARD.search(json.dumps(shards).encode()):
        return False
    return answer.get("status") in REJECTION_STATUSES or bool(has_failed_shard)


def _decompress(held: bytes, encoding: bytes, limit_bytes: int) -> bytes:
    """Return the text of the held bytes, which may end early. They are gzip when the client asked for it."""
    if encoding != b"gzip":
        return held
    try:
        return zlib.decompressobj(wbits=31).decompress(held, limit_bytes)
    except zlib.error:
        return b""
