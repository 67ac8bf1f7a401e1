"""What a generator does, told to whoever counts it: the metrics of a proxy, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from querylift.plugin.generators.base import Generator

GenerationFailure = Literal["busy", "failed"]


class GenerationMeter:
    """Is told what one generator does. This class counts nothing; the metrics of a proxy have one that counts."""

    def set_pending(self, count: int) -> None:
        """Note how many expansions are under way now."""

    def set_waiting(self, count: int) -> None:
        """Note how many expansions wait now until the generator has a place for them."""

    def add_duration(self, duration_s: float) -> None:
        """Note how long the generator took for one expansion, its queue included."""

    def count_failure(self, failure: GenerationFailure) -> None:
        """Note that an expansion was refused because too many wait (`busy`), or was not made (`failed`)."""

    def count_restart(self) -> None:
        """Note that the generator's worker process was replaced."""


class WaitingLine:
    """Counts those requests that wait for one of `places`. `report_count` is told each new number of them."""

    def __init__(self, places: int, report_count: Callable[[int], None]) -> None:
        self._places = places
        self._report_count = report_count
        self._present_count = 0

    @contextmanager
    def hold_place(self) -> Iterator[None]:
        """Count one more request until the block ends."""
        self._change_count(1)
        try:
            yield
        finally:
            self._change_count(-1)

    def _change_count(self, change: int) -> None:
        self._present_count += change
        if self._present_count + (change < 0) > self._places:  # otherwise nothing waits, before and after
            self._report_count(max(0, self._present_count - self._places))


def attach_meter(generator: Generator, meter: GenerationMeter) -> None:
    """Let a generator that has an attribute `meter` report its queue and its restarts to `meter`."""
    if hasattr(generator, "meter"):
        generator.meter = meter
