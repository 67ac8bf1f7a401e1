"""Keeps a fault that comes again and again from filling the log."""

from __future__ import annotations

import math
from collections.abc import Callable


class WarningPause:
    """Lets one warning pass in `pause_s` seconds of `clock`. The first one passes."""

    def __init__(self, pause_s: float, clock: Callable[[], float]) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._warned_s = -math.inf

    def take_turn(self) -> bool:
        """Return whether a warning may pass now. If so, the next pause begins."""
        now_s = self._clock()
        if now_s - self._warned_s < self._pause_s:
            return False
        self._warned_s = now_s
        return True
