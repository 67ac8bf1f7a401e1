"""A thread pool with a bounded queue, for the two generators that run an encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from querylift.plugin.errors import GeneratorBusy
from querylift.plugin.generation_meter import WaitingLine

_Value = TypeVar("_Value")
_T = TypeVar("_T")


class BoundedExecutor:
    """Runs functions on `threads` threads, for at most `max_pending` requests at a time.

    `report_waiting` is told how many more functions wait for a thread, or fewer.
    """

    def __init__(
        self, threads: int, *, max_pending: int, report_waiting: Callable[[int], None] = lambda change: None
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="expander")
        self._max_pending = max_pending
        self._pending = 0
        self._line = WaitingLine(threads, report_waiting)

    @contextmanager
    def count_request(self) -> Iterator[None]:
        """Count one more pending request until the block ends. Raises GeneratorBusy when there are too many."""
        if self._pending >= self._max_pending:
            raise GeneratorBusy(f"{self._pending} requests already wait for the expander")
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    async def run(self, function: Callable[[_Value], _T], value: _Value) -> _T:
        """Return `function(value)`, computed on one of the threads."""
        with self._line.hold_place():
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, value)

    async def close(self) -> None:
        """Cancel the work that waits, and end the threads."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
