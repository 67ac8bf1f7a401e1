"""What a generator does, told to whoever counts it: the metrics of a proxy, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from querylift.plugin.generators.base import Generator

GenerationFailure = Literal["busy", "failed"]


class GenerationMeter:
    """Is told what one generator does. This class counts nothing; the metrics of a proxy have one that counts."""

    def add_pending(self, change: int) -> None:
        """Note how many more expansions are under way now; a negative number means fewer."""

    def add_waiting(self, change: int) -> None:
        """Note how many more expansions wait now for a place in the generator; a negative number means fewer."""

    def add_duration(self, duration_s: float) -> None:
        """Note how long the generator took for one expansion, its queue included."""

    def count_failure(self, failure: GenerationFailure) -> None:
        """Note that an expansion was refused because too many wait (`busy`), or was not made (`failed`)."""

    def count_restart(self) -> None:
        """Note that the generator's worker process was replaced."""


class WaitingLine:
    """Counts those requests that wait for one of `places`. `report_change` is told how many more they are, or fewer."""

    def __init__(self, places: int, report_change: Callable[[int], None]) -> None:
        self._places = places
        self._report_change = report_change
        self._present_count = 0

    @contextmanager
    def hold_place(self) -> Iterator[None]:
        """Count one more request until the block ends."""
        self._present_count += 1
        if self._present_count > self._places:
            self._report_change(1)
        try:
            yield
        finally:
            if self._present_count > self._places:
                self._report_change(-1)
            self._present_count -= 1


def attach_meter(generator: Generator, meter: GenerationMeter) -> None:
    """Let a generator that has an attribute `meter` report its queue and its restarts to `meter`."""
    if hasattr(generator, "meter"):
        generator.meter = meter
