"""Spreads connections evenly over workers that listen on one socket.

The kernel alone does not: of eight connections, one worker often takes seven. Clients keep their connections for long, so
that worker would stay the busier one. Here a worker leaves a connection to another one that has fewer, for a moment.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
import struct
from collections.abc import Callable, Sequence

from querylift.plugin.proxy.server import GuardedServer

_log = logging.getLogger("querylift")
_COUNT = struct.Struct("=q")
_ABSENT = -1
_LEFT_TO_OTHERS_S = 0.005
"""After so long, a connection that another worker should take is taken, for that worker may hang."""
_PUBLISH_S = 0.1
_AFTER_ERROR_S = 1.0
"""How long no connection is taken after an error, such as that no more files can be opened."""


class ConnectionCounts:
    """The number of open connections of each worker, in memory that forked processes share. Workers count from 1."""

    def __init__(self, workers: int) -> None:
        self._workers = range(1, workers + 1)
        self._memory = mmap.mmap(-1, _COUNT.size * (workers + 1))
        for number in self._workers:
            self.remove(number)

    def publish(self, number: int, count: int) -> None:
        """Tell the other workers how many connections worker `number` has."""
        _COUNT.pack_into(self._memory, number * _COUNT.size, count)

    def remove(self, number: int) -> None:
        """Note that worker `number` takes no connections."""
        self.publish(number, _ABSENT)

    def has_fewest(self, number: int, count: int) -> bool:
        """Whether no other worker has fewer than `count` connections."""
        others = (self._read(other) for other in self._workers if other != number)
        return all(other_count == _ABSENT or other_count >= count for other_count in others)

    def _read(self, number: int) -> int:
        count: int = _COUNT.unpack_from(self._memory, number * _COUNT.size)[0]
        return count


class FairListener:
    """Takes connections from a socket that other workers listen on too, as long as no worker has fewer.

    It has the methods of asyncio's servers that uvicorn calls.
    """

    def __init__(
        self,
        listener: socket.socket,
        create_protocol: Callable[[], asyncio.Protocol],
        *,
        counts: ConnectionCounts,
        number: int,
        count_connections: Callable[[], int],
    ) -> None:
        self._listener = listener
        self._create_protocol = create_protocol
        self._counts = counts
        self._number = number
        self._count_connections = count_connections
        self._loop = asyncio.get_running_loop()
        self._openings: set[asyncio.Task[object]] = set()
        self._is_closed = False
        self._publish_now_and_then()
        self._loop.add_reader(listener.fileno(), self._take_or_leave)

    def close(self) -> None:
        """Take no more connections."""
        if not self._is_closed:
            self._is_closed = True
            self._counts.remove(self._number)
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()

    async def wait_closed(self) -> None:
        """Return at once: `close` has done all."""

    def _count(self) -> int:
        return self._count_connections() + len(self._openings)

    def _publish_now_and_then(self) -> None:
        if not self._is_closed:
            self._counts.publish(self._number, self._count())
            self._loop.call_later(_PUBLISH_S, self._publish_now_and_then)

    def _take_or_leave(self) -> None:
        if self._counts.has_fewest(self._number, self._count()):
            self._take()
        else:
            self._pause(_LEFT_TO_OTHERS_S, then_takes=True)

    def _pause(self, seconds: float, *, then_takes: bool) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(seconds, self._resume, then_takes)

    def _resume(self, takes: bool) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._listener.fileno(), self._take_or_leave)
            if takes:
                self._take()

    def _take(self) -> None:
        """Take one connection, if there still is one."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker has it
        except OSError as error:
            _log.error("no connection can be taken now: %s", error.strerror)
            self._pause(_AFTER_ERROR_S, then_takes=False)
            return
        connection.setblocking(False)
        opening: asyncio.Task[object] = asyncio.ensure_future(
            self._loop.connect_accepted_socket(self._create_protocol, connection)
        )
        self._openings.add(opening)
        opening.add_done_callback(self._forget_opening)
        self._counts.publish(self._number, self._count())

    def _forget_opening(self, opening: asyncio.Task[object]) -> None:
        self._openings.discard(opening)
        if not opening.cancelled():
            opening.exception()  # fetched: a client that is gone already is no fault of ours


async def listen_fairly(
    server: GuardedServer, sockets: Sequence[socket.socket], counts: ConnectionCounts, number: int
) -> None:
    """Start `server` as worker `number` on sockets that all workers listen on."""
    config = server.config

    def create_protocol() -> asyncio.Protocol:
        return config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        )

    server.servers = [
        FairListener(  # type: ignore[misc]
            listener,
            create_protocol,
            counts=counts,
            number=number,
            count_connections=lambda: len(server.server_state.connections),
        )
        for listener in sockets
    ]
    server.started = True
