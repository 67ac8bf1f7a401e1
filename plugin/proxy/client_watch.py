"""Notice that a client goes away while its request is under way."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from querylift.plugin.proxy.asgi_types import Receive

WATCH_AFTER_S = 0.05
"""A request runs for so long before the watch of its client begins."""


class ClientGone(Exception):
    """The client closed its connection."""


class ClientWatch:
    """A context manager that cancels its task when the client goes away, and then raises ClientGone.

    The request body and the disconnection come through one stream, so the watch must wait for `allow`. It then begins
    after WATCH_AFTER_S. Most answers arrive sooner, and a watching task for each of them would cost a tenth of the
    speed.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watched_task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._is_allowed = False
        self._is_client_gone = False

    def allow(self) -> None:
        """Allow the watch, once the request body is read. From then on the stream can only report a disconnection."""
        self._is_allowed = True
        if self._watched_task is not None:
            self._start_timer()

    def __enter__(self) -> None:
        self._watched_task = asyncio.current_task()
        if self._is_allowed:
            self._start_timer()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._watched_task = self._watched_task, None
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._is_client_gone and kind is asyncio.CancelledError and task is not None and task.uncancel() == 0:
            raise ClientGone from None

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start_watcher)

    def _start_watcher(self) -> None:
        self._watcher = asyncio.ensure_future(self._wait_for_disconnection())

    async def _wait_for_disconnection(self) -> None:
        await self._receive()
        if self._watched_task is not None:
            self._is_client_gone = True
            self._watched_task.cancel()
