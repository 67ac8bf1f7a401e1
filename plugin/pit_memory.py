"""Remembers on which indices a point in time was opened, because a search that uses one names no index."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_POINTS_IN_TIME = 4096
KEEP_S = 86_400
"""A point in time that was not used for so long is forgotten."""
_MAX_EXPRESSION_CHARS = 1024


@dataclass(frozen=True, slots=True)
class _PointInTime:
    index: str
    used_s: float


class PitMemory:
    """The index expressions of points in time, for one process. The one that was not used for longest goes first.

    `clock` gives seconds. An id is kept as a digest, because engines write kilobytes into one for many shards.
    """

    def __init__(self, clock: Callable[[], float], *, max_size: int = MAX_POINTS_IN_TIME) -> None:
        self._clock = clock
        self._max_size = max_size
        self._points: OrderedDict[bytes, _PointInTime] = OrderedDict()

    def remember_index(self, pit_id: str, index: str) -> None:
        """Remember that the point in time was opened on the index expression. A very long expression is not kept."""
        if len(index) > _MAX_EXPRESSION_CHARS:
            return
        key = _compute_key(pit_id)
        self._points[key] = _PointInTime(index, self._clock())
        self._points.move_to_end(key)
        while len(self._points) > self._max_size:
            self._points.popitem(last=False)

    def find_index(self, pit: object) -> str | None:
        """Return the index expression for the value of `pit` in a search's body. None when it is not remembered."""
        pit_id = pit.get("id") if isinstance(pit, dict) else None
        if not isinstance(pit_id, str) or not self._points:
            return None
        key = _compute_key(pit_id)
        point = self._points.pop(key, None)  # at once, because another thread may read large bodies
        now_s = self._clock()
        if point is None or now_s - point.used_s > KEEP_S:
            return None
        self._points[key] = _PointInTime(point.index, now_s)
        return point.index


def _compute_key(pit_id: str) -> bytes:
    return hashlib.blake2b(pit_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
