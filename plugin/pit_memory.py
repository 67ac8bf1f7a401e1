"""Remembers on which indices a point in time was opened, because a search that uses one names no index."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from cachetools import TTLCache

from querylift.plugin.search_memory import MAX_EXPRESSION_CHARS

MAX_POINTS_IN_TIME = 4096
KEEP_S = 86_400
"""A point in time that was not used for so long is forgotten."""


class PitMemory:
    """The index expressions of points in time, for one process. The one that was not used for longest goes first.

    `clock` gives seconds. An id is kept as a digest, because engines write kilobytes into one for many shards.
    """

    def __init__(self, clock: Callable[[], float], *, max_size: int = MAX_POINTS_IN_TIME) -> None:
        self._indices: TTLCache[bytes, str] = TTLCache(max_size, KEEP_S, timer=clock)
        self._lock = threading.Lock()  # large bodies are read in a thread

    def remember_index(self, pit_id: str, index: str) -> None:
        """Remember that the point in time was opened on the index expression. A very long expression is not kept."""
        if len(index) <= MAX_EXPRESSION_CHARS:
            with self._lock:
                self._indices[_compute_key(pit_id)] = index

    def find_index(self, pit: object) -> str | None:
        """Return the index expression for the value of `pit` in a search's body. None when it is not remembered."""
        pit_id = pit.get("id") if isinstance(pit, dict) else None
        if not isinstance(pit_id, str):
            return None
        with self._lock:
            key = _compute_key(pit_id)
            index = self._indices.get(key)
            if index is not None:
                self._indices[key] = index  # kept for as long again
        return index


def _compute_key(pit_id: str) -> bytes:
    return hashlib.blake2b(pit_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
