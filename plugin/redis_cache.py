"""A Valkey or Redis that several proxies share. A fault there is a miss, never a failed search."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from querylift.plugin.cache_faults import OPERATIONS, CacheFaults, Operation
from querylift.plugin.errors import MissingExtra, SettingsError

_PREFIX = "querylift:"
_EXAMPLE = "redis://:PASSWORD@127.0.0.1:6379/0"
_TRIED_SLOTS = 32
"""Keys that are read when the cache starts. If nodes of a cluster share the slots, another node has some of them."""
_CLUSTER_PATIENCE = 4
"""A call to a cluster may take so many timeouts, because it may have to ask a second node."""


class RedisCache:
    """The cache at `url`: redis://, rediss:// or unix://. Raises SettingsError, MissingExtra.

    After an error, or after `timeout_s` without an answer, the server is not asked for `rest_s` seconds of `clock`. So a
    silent server does not delay every search. When the server lives and refuses only writes, because it is full or a
    replica, only writes rest.
    """

    def __init__(self, url: str, clock: Callable[[], float], *, timeout_s: float = 0.05, rest_s: float = 5) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._call_limit_s: float | None = None
        self._client, self._errors, self._refusal = _open_client(url, timeout_s)
        self._clock = clock
        self._rest_s = rest_s
        self._rests_until_s = dict.fromkeys(OPERATIONS, -math.inf)
        self.faults = CacheFaults(f"the shared cache at {_describe_place(url)}", clock)

    async def start(self) -> None:
        """Try one write and one read, so that a wrong password is in the log before the first search.

        When several nodes of a cluster share the keys, connect to all of them.
        """
        try:
            await self._connect_to_cluster_if_any()
        except self._errors:
            pass  # the try below fails for the same reason, and records it
        await self.set("started", "1", ttl_s=1)
        await self.get("started")

    async def get(self, key: str) -> str | None:
        """Return the value at `key`, or None."""
        reply = await self._call_server("read", lambda: self._client.get(_PREFIX + key))
        return _decode_value(reply)

    def peek_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        """Return (None, None): this process holds no values."""
        return None, None

    async def get_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        """Return both values. The two commands go out together. One command for both keys would need one slot."""

        def read_both() -> Any:
            pipeline = self._client.pipeline(transaction=False)
            return pipeline.get(_PREFIX + first_key).get(_PREFIX + second_key).execute()

        values = await self._call_server("read", read_both)
        return (_decode_value(values[0]), _decode_value(values[1])) if values else (None, None)

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        """Keep `value` for `ttl_s` seconds."""
        expiry_ms = max(1, int(ttl_s * 1000))
        await self._call_server("write", lambda: self._client.set(_PREFIX + key, value, px=expiry_ms))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _call_server(self, operation: Operation, send: Callable[[], Awaitable[Any]]) -> Any:
        """Return the server's reply. Return None while the operation rests, or when it fails."""
        if self._clock() < self._rests_until_s[operation]:
            return None
        try:
            async with asyncio.timeout(self._call_limit_s):
                reply = await send()
        except self._errors as error:
            self._rest_after_fault(operation, error)
            return None
        self.faults.record_success(operation)
        return reply

    def _rest_after_fault(self, operation: Operation, error: Exception) -> None:
        until_s = self._clock() + self._rest_s
        # A refusal is an answer: the server lives, and the other operation may work. Everything else stops both.
        stopped_operations = (operation,) if isinstance(error, self._refusal) else OPERATIONS
        self._rests_until_s |= dict.fromkeys(stopped_operations, until_s)
        reason = str(error) or f"no answer within {self._timeout_s:g} s"
        self.faults.record_failure(operation, reason, stops=stopped_operations)

    async def _connect_to_cluster_if_any(self) -> None:
        """Use a client for clusters where another node holds some of the keys."""
        from redis.asyncio.cluster import RedisCluster
        from redis.exceptions import MovedError, RedisClusterException

        pipeline = self._client.pipeline(transaction=False)
        for number in range(_TRIED_SLOTS):
            pipeline.get(f"{_PREFIX}try:{number}")
        replies = await pipeline.execute(raise_on_error=False)
        if not any(isinstance(reply, MovedError) for reply in replies):
            return
        await self._client.aclose()
        options = {"socket_timeout": self._timeout_s, "socket_connect_timeout": self._timeout_s}
        self._errors = (*self._errors, RedisClusterException)
        self._call_limit_s = _CLUSTER_PATIENCE * self._timeout_s
        self._client = RedisCluster.from_url(self._url, **options)
        await self._client.initialize()


def _decode_value(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None  # a URL may ask for decoded answers


def _open_client(url: str, timeout_s: float) -> tuple[Any, tuple[type[Exception], ...], type[Exception]]:
    """Return a client, the errors that its calls raise, and the error by which a living server refuses a command."""
    try:
        from redis import RedisError, ResponseError
        from redis import asyncio as redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise MissingExtra("redis", "redis") from None
    if problem := _find_url_problem(url):
        raise SettingsError(f"cache.url cannot be used: {problem}")
    options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    try:
        client: Any = redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
        client.connection_pool.make_connection()  # without this, an unknown option fails with the first search
    except (ValueError, TypeError, AttributeError, RedisError) as error:
        # The library's own sentences may hold a part of the password.
        raise SettingsError(f"cache.url cannot be used: {_find_option_problem(url, str(error))}") from None
    return client, (RedisError, OSError), ResponseError


def _find_url_problem(url: str) -> str | None:
    """Return what is wrong with the URL, or None. A sign in a password, such as #, can cut a URL in an odd place."""
    remedy = f"use one like {_EXAMPLE}, and write / ? # @ in a password as %2F %3F %23 %40"
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return f"its host or port cannot be read; {remedy}"
    if parts.scheme not in ("redis", "rediss", "unix"):
        return f"it does not begin with redis://, rediss:// or unix://; {remedy}"
    if parts.fragment or "@" in parts.path or "@" in parts.query:
        return f"a sign in it has a meaning of its own; {remedy}"
    if parts.scheme == "unix":
        return None if parts.path else "it names no socket; use one like unix:///run/redis.sock?db=0"
    if not has_host:
        return f"it names no host; {remedy}"
    if not re.fullmatch(r"/?\d*", parts.path):
        return f"its path is not the number of a database; {remedy}"
    return None


def _find_option_problem(url: str, library_sentence: str) -> str:
    """Return a sentence about the option that the library does not take. It holds no value of the URL."""
    options = parse_qs(urlsplit(url).query, keep_blank_values=True)
    named_option = next((name for name in options if f"'{name}'" in library_sentence), None)
    if named_option is None:
        listed_options = ", ".join(options) or "none"
        return f"an option in it has a wrong value (its options: {listed_options}); correct or remove it"
    if "unexpected keyword" in library_sentence:
        tls_remedy = ", or write rediss:// for TLS" if named_option.startswith("ssl_") else ""
        return f"it has the option {named_option!r}, which does not exist for this kind of URL; remove it{tls_remedy}"
    return f"its option {named_option!r} has a wrong value; correct or remove it"


def _describe_place(url: str) -> str:
    """Return host and port, or the socket's path."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"
