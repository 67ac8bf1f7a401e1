"""Bounds on the connections of clients: how many there are, and how long one may keep the proxy waiting.

Nothing here takes time for each request. The server looks at all connections once a second.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

MAX_CLIENTS = 10_000
ADMIN_CONNECTIONS = 32
"""Connections to the admin page. They have files of their own, so that health answers however many clients there are."""
_RESERVED_FILES = 64
"""For sockets that listen, the log, the worker, Redis, and the generator's own connections to the engine."""
_WANTED_FILES = 65_536


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on the connections of one server.

    A request's head must come within `head_s` seconds. A client that is sending a body or taking an answer must move
    `min_bytes` in every `stall_s` seconds.
    """

    connections: int = MAX_CLIENTS
    head_s: float = 30
    stall_s: float = 60
    min_bytes: int = 1024


@dataclass(frozen=True, slots=True)
class ClientWait:
    """What the proxy waits for on a connection. `moved_bytes` counts the bytes of this step, from any start.

    A request is a step, and so is each pause of an answer.
    """

    kind: str
    step: int
    moved_bytes: int


class GuardedConnection(Protocol):
    """A connection of a client, as the guard sees it."""

    def describe_wait(self) -> ClientWait | None:
        """Return what the proxy waits for from the client, or None when it does not wait."""

    def end_wait(self, wait: ClientWait) -> None:
        """Close the connection, because the client took too long."""

    def close_idle(self) -> None:
        """Close the connection, on which no request is under way."""


class ConnectionGuard:
    """The connections of one server that could be closed, and since when each has kept the proxy waiting."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._idle_connections: dict[GuardedConnection, None] = {}
        self._waits: dict[GuardedConnection, tuple[ClientWait, float]] = {}

    def admit(self, connection: GuardedConnection, open_count: int) -> bool:
        """Whether a new connection may stay. `open_count` includes it.

        Where there are too many, the one that has been without a request for longest is closed instead.
        """
        if open_count > self.limits.connections:
            oldest = next(iter(self._idle_connections), None)
            if oldest is None:
                return False
            self.forget(oldest)
            oldest.close_idle()
        self.mark_idle(connection)
        return True

    def mark_idle(self, connection: GuardedConnection) -> None:
        """Note that no request is under way on a connection. A head that is not complete is no request yet."""
        self._idle_connections[connection] = None

    def mark_busy(self, connection: GuardedConnection) -> None:
        """Note that a request is under way on a connection, so that it is not closed to make room."""
        self._idle_connections.pop(connection, None)

    def forget(self, connection: GuardedConnection) -> None:
        """Forget a connection that is closed."""
        self._idle_connections.pop(connection, None)
        self._waits.pop(connection, None)

    def end_stalled_waits(self, connections: Iterable[GuardedConnection], now_s: float) -> None:
        """Close each of `connections` whose client has kept the proxy waiting for too long."""
        for connection in tuple(connections):
            wait = connection.describe_wait()
            if wait is None:
                self._waits.pop(connection, None)
                continue
            first_wait, since_s = self._waits.setdefault(connection, (wait, now_s))
            if self._has_moved(first_wait, wait):
                self._waits[connection] = wait, now_s
            elif now_s - since_s > (self.limits.head_s if wait.kind == "head" else self.limits.stall_s):
                self.forget(connection)
                connection.end_wait(wait)

    def _has_moved(self, before: ClientWait, now: ClientWait) -> bool:
        if (before.kind, before.step) != (now.kind, now.step):
            return True
        return now.kind != "head" and now.moved_bytes - before.moved_bytes >= self.limits.min_bytes


def raise_file_limit() -> int:
    """Let this process open as many files as the system allows, and return how many clients there may be then."""
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard_limit == resource.RLIM_INFINITY else min(_WANTED_FILES, hard_limit)
    if soft_limit != resource.RLIM_INFINITY and soft_limit < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard_limit))
        soft_limit = wanted
    return count_clients(soft_limit)


def count_clients(file_limit: int) -> int:
    """Return how many clients a process with so many files can serve. Each may need a connection to the engine too."""
    if file_limit == resource.RLIM_INFINITY:
        return MAX_CLIENTS
    return max(1, min(MAX_CLIENTS, (file_limit - ADMIN_CONNECTIONS - _RESERVED_FILES) // 2))
