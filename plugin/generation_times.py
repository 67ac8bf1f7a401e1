"""How long a generator takes, so that no search waits for an expansion that will come too late."""

from __future__ import annotations

from collections import deque
from statistics import median_low

from querylift.plugin.generators.base import Generator

_REMEMBERED_COUNT = 9


class GenerationTimes:
    """The last nine durations of a generator's expansions, in seconds. `expected_s` stands for the first one."""

    def __init__(self, expected_s: float) -> None:
        self._durations_s = deque([expected_s], maxlen=_REMEMBERED_COUNT)
        self.typical_s = expected_s
        """The lower median. One slow expansion, such as the first after a start, changes it little."""

    def add_duration(self, duration_s: float) -> None:
        """Remember how long one expansion took."""
        self._durations_s.append(duration_s)
        self.typical_s = median_low(self._durations_s)


def get_expected_duration_s(generator: Generator) -> float:
    """Return the seconds that an expansion probably takes, before one was measured.

    A generator that takes longer than a moment says so in its attribute `expected_s`.
    """
    return float(getattr(generator, "expected_s", 0.0))
