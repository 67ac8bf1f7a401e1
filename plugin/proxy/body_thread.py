"""Reads large search bodies in a thread, so that they delay no other search."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")
MAX_INLINE_BYTES = 8192
"""A body of at most this size is read on the event loop, which takes less than a millisecond."""


class BodyThread:
    """One thread, shared by all requests with a large body. Python runs it and the event loop in turns of some milliseconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
        self._clock = clock

    async def run(
        self, deadline_s: float, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments
    ) -> _Result:
        """Return `function(*arguments)`. Raises TimeoutError at `deadline_s`; work that has not begun then is dropped."""
        async with asyncio.timeout(deadline_s - self._clock()):
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def close(self) -> None:
        """Drop the work that has not begun, and end the thread."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
