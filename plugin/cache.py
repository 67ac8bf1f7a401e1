"""Where expansions are kept, and which queries are held to an answer without one.

A cache holds short strings by key. The in-process one serves a single proxy, a file outlives it, and
replicas share a Valkey or Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from cachetools import TLRUCache

from querylift.plugin.errors import MissingExtra, SettingsError
from querylift.plugin.expansion import PROMPT_VERSION, Expansion, clean_query
from querylift.plugin.generators.base import Ask, Generator

_TIDIED_EVERY = 1000
"""Writes after which a cache file loses what is too old or too much."""
NOTHING = "{}"
"""Kept where a generator had nothing to add, so that it is not asked again."""


class Cache(Protocol):
    """Strings by key, each with a life of its own. Failures of a remote cache read as a miss."""

    async def get(self, key: str) -> str | None: ...

    def at_hand(self, first: str, second: str) -> tuple[str | None, str | None]:
        """What of the two is in this process's memory, found without waiting."""
        ...

    async def get_two(self, first: str, second: str) -> tuple[str | None, str | None]: ...

    async def set(self, key: str, value: str, *, ttl_s: float) -> None: ...

    async def close(self) -> None: ...


class MemoryCache:
    """At most `size` entries in this process; the least recently used go first. `timer` gives seconds."""

    def __init__(self, size: int, timer: Any) -> None:
        self._entries: TLRUCache[str, tuple[str, float]] = TLRUCache(
            maxsize=size, ttu=lambda _key, value, now: now + value[1], timer=timer
        )

    async def get(self, key: str) -> str | None:
        return self._kept(key)

    def at_hand(self, first: str, second: str) -> tuple[str | None, str | None]:
        return self._kept(first), self._kept(second)

    async def get_two(self, first: str, second: str) -> tuple[str | None, str | None]:
        return self.at_hand(first, second)

    def _kept(self, key: str) -> str | None:
        found = self._entries.get(key)
        return found[0] if found is not None else None

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        self._entries[key] = (value, ttl_s)

    async def close(self) -> None:
        self._entries.clear()


class RedisCache:
    """A Valkey or Redis that several proxies share. An error there is a miss, never a failed search.

    After an error, or `timeout_s` without an answer, it is left alone for `rest_s` seconds of `timer`, so that a silent
    one does not cost every search its time.
    """

    def __init__(self, url: str, timer: Callable[[], float], *, timeout_s: float = 0.05, rest_s: float = 5) -> None:
        try:
            from redis import asyncio as redis
        except ImportError:
            raise MissingExtra("redis", "redis") from None
        try:
            self._client = redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        except ValueError as error:
            raise SettingsError(f"cache.url cannot be used: {error}") from None
        self._errors = (redis.RedisError, OSError, TimeoutError)
        self._timer = timer
        self._rest_s = rest_s
        self._rests_until_s = -math.inf

    async def get(self, key: str) -> str | None:
        return (await self.get_two(key, key))[0]

    def at_hand(self, first: str, second: str) -> tuple[str | None, str | None]:
        return None, None

    async def get_two(self, first: str, second: str) -> tuple[str | None, str | None]:
        found = await self._try(self._client.mget, "querylift:" + first, "querylift:" + second)
        return (found[0], found[1]) if found else (None, None)

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        await self._try(self._client.set, "querylift:" + key, value, px=max(1, int(ttl_s * 1000)))

    async def close(self) -> None:
        await self._client.aclose()

    async def _try(self, call: Callable[..., Any], *values: str, **options: int) -> Any:
        """What the call returns, strings decoded; None where the cache rests or fails."""
        if self._timer() < self._rests_until_s:
            return None
        try:
            found = await call(*values, **options)
        except self._errors:
            self._rests_until_s = self._timer() + self._rest_s
            return None
        if not isinstance(found, list):
            return found
        return [item.decode("utf-8", "replace") if isinstance(item, bytes) else None for item in found]


class FileCache:
    """A SQLite file behind a memory of the `size` entries used last, so that a restarted proxy begins warm.

    The file is read and written in a thread of its own; `wall_clock` gives seconds since the epoch. An error is a miss.
    """

    def __init__(self, path: Path, size: int, timer: Any, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._memory = MemoryCache(size, timer)
        self._size = size
        self._writes = 0
        self._wall_clock = wall_clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="querylift-cache")
        try:
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT, until REAL)")
            self._file.execute("DELETE FROM kept WHERE until < ?", (wall_clock(),))
        except sqlite3.Error as error:
            raise SettingsError(f"cache.file is {path}: it cannot be used as a cache ({error}); name another") from None

    def at_hand(self, first: str, second: str) -> tuple[str | None, str | None]:
        return self._memory.at_hand(first, second)

    async def get(self, key: str) -> str | None:
        found = await self._memory.get(key)
        if found is not None:
            return found
        row = await self._in_thread("SELECT value, until FROM kept WHERE key = ?", (key,))
        left_s = row[1] - self._wall_clock() if row else 0
        if row is None or left_s <= 0:
            return None
        await self._memory.set(key, row[0], ttl_s=left_s)
        return str(row[0])

    async def get_two(self, first: str, second: str) -> tuple[str | None, str | None]:
        return await self.get(first), await self.get(second)

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        await self._memory.set(key, value, ttl_s=ttl_s)
        await self._in_thread("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (key, value, self._wall_clock() + ttl_s))
        self._writes += 1
        if self._writes % _TIDIED_EVERY == 0:
            await self._in_thread("DELETE FROM kept WHERE until < ?", (self._wall_clock(),))
            oldest = "SELECT key FROM kept ORDER BY until DESC LIMIT -1 OFFSET ?"
            await self._in_thread(f"DELETE FROM kept WHERE key IN ({oldest})", (self._size,))

    async def close(self) -> None:
        await self._memory.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        self._thread.shutdown()

    async def _in_thread(self, statement: str, values: tuple[Any, ...]) -> Any:
        def run() -> Any:
            try:
                return self._file.execute(statement, values).fetchone()
            except sqlite3.Error:
                return None

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def key_of(generator: Generator, ask: Ask) -> str:
    """64 hex digits that two asks share exactly when `generator` must answer them alike."""
    parts = [generator.identity, PROMPT_VERSION, clean_query(ask.text)]
    if generator.reads_index:
        parts += [ask.index, *ask.fields]
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def encode(expansion: Expansion | None) -> str:
    """What is kept for `expansion`."""
    return NOTHING if expansion is None else json.dumps(expansion.to_json(), separators=(",", ":"))


def decode(value: str) -> Expansion | None:
    """What `encode` wrote. Raises ValueError for anything else, as another program may have put it there."""
    if value == NOTHING:
        return None
    try:
        found = json.loads(value)
    except RecursionError as error:
        raise ValueError("a cached expansion is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("a cached expansion is a JSON object")
    return Expansion.from_json(found)
