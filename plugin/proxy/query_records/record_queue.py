"""A bounded queue between searches and the place where their records are written. No search ever waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from querylift.plugin.warning_pause import WarningPause

_log = logging.getLogger("querylift")

RecordFate = Literal["written", "refused", "dropped"]
"""`refused`: the engine answered, and did not take this record. `dropped`: the queue was full, or the process ended."""
RECORD_FATES: tuple[RecordFate, ...] = ("written", "refused", "dropped")
CAPACITY = 10_000
BATCH_SIZE = 1_000
INTERVAL_S = 0.5
"""How long records are gathered before they are written."""
LONGEST_DELAY_S = 30.0
CLOSE_S = 3.0
"""How long the end of the process waits for the last records."""
_S_BETWEEN_WARNINGS = 60


class PlaceDown(Exception):
    """Nothing of a batch was written, and it can be tried again later. The message says why."""


class RecordPlace(Protocol):
    """Where records are written: `name` says it in the log."""

    @property
    def name(self) -> str: ...

    async def write_lines(self, lines: Sequence[str]) -> tuple[int, str]:
        """Write lines of JSON. Return how many were refused, and why the first was. Raises PlaceDown."""
        ...

    async def close(self) -> None:
        """Close files and connections."""
        ...


class RecordQueue:
    """Gathers records and writes them in the background. Must be made on a running event loop.

    While the place is down, records wait in the queue. When it is full, new ones are dropped. `count_records` gets the fate of
    each record. The log gets a reason, at most once a minute.
    """

    def __init__(
        self,
        place: RecordPlace,
        count_records: Callable[[RecordFate, int], None],
        *,
        capacity: int = CAPACITY,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._place = place
        self._count_records = count_records
        self._capacity = capacity
        self._interval_s = interval_s
        self._lines: deque[str] = deque()
        self._has_work = asyncio.Event()
        self._is_closing = asyncio.Event()
        self._warning_pause = WarningPause(_S_BETWEEN_WARNINGS, time.monotonic)
        self._task = asyncio.ensure_future(self._write_until_closed())

    def add_line(self, line: str) -> None:
        """Take one record, or drop it when the queue is full."""
        if len(self._lines) >= self._capacity:
            self._count_records("dropped", 1)
            self._warn("records are dropped, because too many wait")
            return
        self._lines.append(line)
        self._has_work.set()

    async def close(self) -> None:
        """Write what waits, for a moment at most, and close the place."""
        self._is_closing.set()
        self._has_work.set()
        await asyncio.wait([self._task], timeout=CLOSE_S)
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._lines:
            self._count_records("dropped", len(self._lines))
            _log.warning("%d records for %s were not written before the end", len(self._lines), self._place.name)
        await self._place.close()

    async def _write_until_closed(self) -> None:
        """Write batches. After `close` was called, go on until nothing waits or the place is down."""
        delay_s = self._interval_s
        while self._lines or not self._is_closing.is_set():
            await self._has_work.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_closing.wait(), delay_s)
            try:
                await self._write_batch()
                delay_s = self._interval_s
            except PlaceDown as error:
                delay_s = min(2 * delay_s, LONGEST_DELAY_S)
                self._warn(str(error))
                if self._is_closing.is_set():
                    return
            except Exception:
                _log.exception("records for %s have a fault and are dropped", self._place.name)
                self._forget_lines(BATCH_SIZE, "dropped")

    async def _write_batch(self) -> None:
        """Write the oldest records. They leave the queue only when the place has answered. Raises PlaceDown."""
        lines = [self._lines[i] for i in range(min(len(self._lines), BATCH_SIZE))]
        refused_count, reason = await self._place.write_lines(lines)
        self._forget_lines(len(lines) - refused_count, "written")
        if refused_count:
            self._forget_lines(refused_count, "refused")
            self._warn(f"{refused_count} records were refused: {reason}")

    def _forget_lines(self, count: int, fate: RecordFate) -> None:
        count = min(count, len(self._lines))
        for _ in range(count):
            self._lines.popleft()
        self._count_records(fate, count)
        if not self._lines and not self._is_closing.is_set():
            self._has_work.clear()

    def _warn(self, reason: str) -> None:
        if self._warning_pause.take_turn():
            _log.warning("query records for %s: %s", self._place.name, reason)
