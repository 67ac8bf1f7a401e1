"""An engine of several nodes: requests go to them in turn, and past those that take no connection."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import aiohttp

_log = logging.getLogger("querylift")

FIRST_PAUSE_S = 1.0
"""How long a node is left out before it is asked for the first time. Every failure doubles the pause."""
MAX_PAUSE_S = 30.0
CONNECT_TIMEOUT_S = 5.0
"""How long Querylift's own requests wait for a connection, before they go to the next node."""
_CHECK_TIMEOUT_S = 10.0
_CHECK_PATH = "/_search?size=0&terminate_after=1&track_total_hits=false"
"""A node that has just started may answer, but refuse searches until its shards are open. So it is asked for a search."""
_NO_CONNECTION = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""aiohttp raises these before it takes the first byte of a request's body. So nothing has reached the node."""

T = TypeVar("T")


class EngineNodes:
    """The URLs of one engine's nodes. A node that takes no connection is left out until it answers a search again.

    While it is left out it is asked now and then, and no request of a client waits for it. When every node is left out,
    requests go to all of them in turn nevertheless.
    """

    def __init__(
        self, urls: str | Iterable[str], *, first_pause_s: float = FIRST_PAUSE_S, max_pause_s: float = MAX_PAUSE_S
    ) -> None:
        self.urls = (urls,) if isinstance(urls, str) else tuple(urls)
        self._first_pause_s = first_pause_s
        self._max_pause_s = max_pause_s
        self._turn = 0
        self._pauses_s: dict[str, float] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}

    @property
    def digest(self) -> str:
        """Eight characters that tell engines apart, for keys of a cache. The order of the URLs does not matter."""
        return hashlib.sha256(",".join(sorted(self.urls)).encode()).hexdigest()[:8]

    def list_left_out(self) -> list[str]:
        """Return the URLs of the nodes that get no requests now."""
        return [url for url in self.urls if url in self._checks]

    async def send(
        self, session: aiohttp.ClientSession, send_to_node: Callable[[str], Awaitable[T]], *, last_url: str = ""
    ) -> T:
        """Call `send_to_node` with a node's URL, and with the next one where no connection was made. Return its result.

        Nothing is sent twice: every other error is raised at once. When no node takes a connection, the last error is
        raised. The node at `last_url` is the last one of those that are not left out. `session` sends the test searches to
        nodes that are left out.
        """
        if len(self.urls) == 1:
            return await send_to_node(self.urls[0])
        urls = self._list_in_turn(last_url)
        while True:
            url = urls.pop(0)
            was_left_out = url in self._checks
            try:
                result = await send_to_node(url)
            except _NO_CONNECTION as error:
                self._leave_out(url, session, error)
                if not urls:
                    raise
            else:
                self._confirm(url, was_left_out=was_left_out)
                return result

    async def close(self) -> None:
        """Ask the nodes no more."""
        checks = list(self._checks.values())
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
        self._checks.clear()

    def _list_in_turn(self, last_url: str) -> list[str]:
        """Return all URLs in the order in which to try them: first those that are not left out, each in its turn."""
        self._turn += 1
        left_out_urls = self.list_left_out() if self._checks else []
        urls = self._rotate([url for url in self.urls if url not in left_out_urls])
        if last_url in urls:
            urls.sort(key=last_url.__eq__)
        return urls + self._rotate(left_out_urls)

    def _rotate(self, urls: list[str]) -> list[str]:
        start = self._turn % len(urls) if urls else 0
        return urls[start:] + urls[:start]

    def _leave_out(self, url: str, session: aiohttp.ClientSession, error: Exception) -> None:
        if url in self._checks:
            return
        pause_s = min(self._pauses_s.get(url, self._first_pause_s / 2) * 2, self._max_pause_s)
        # The text of a timeout holds the whole URL, and with it what somebody searched for.
        is_late = isinstance(error, aiohttp.ConnectionTimeoutError)
        reason = "no connection in time" if is_late else getattr(error, "strerror", None) or error
        _log.warning("the engine's node %s takes no connections and is left out: %s", url, reason)
        self._pauses_s[url] = pause_s
        self._checks[url] = asyncio.create_task(self._wait_for_node(url, session))

    def _confirm(self, url: str, *, was_left_out: bool) -> None:
        """Take note that a node has answered a request. Only then does its next pause begin short again.

        An answer on a connection from before it was left out does not count.
        """
        if not self._pauses_s or (url in self._checks and not was_left_out):
            return
        self._pauses_s.pop(url, None)
        if check := self._checks.pop(url, None):
            check.cancel()
            _log.info("the engine's node %s answers again", url)

    async def _wait_for_node(self, url: str, session: aiohttp.ClientSession) -> None:
        """Ask a node after every pause, until it answers a search."""
        while True:
            await asyncio.sleep(self._pauses_s[url])
            if await _can_search(url, session):
                break
            self._pauses_s[url] = min(self._pauses_s[url] * 2, self._max_pause_s)
        del self._checks[url]
        _log.info("the engine's node %s answers again", url)


async def _can_search(url: str, session: aiohttp.ClientSession) -> bool:
    """Whether a node answers a search with a status below 500. It may refuse the search, for want of an account."""
    options = {"headers": {"X-Querylift": "off"}, "allow_redirects": False}
    timeout = aiohttp.ClientTimeout(total=_CHECK_TIMEOUT_S)
    try:
        async with session.get(url + _CHECK_PATH, timeout=timeout, **options) as answer:  # type: ignore[arg-type]
            return answer.status < 500
    except (TimeoutError, aiohttp.ClientError, OSError):
        return False
