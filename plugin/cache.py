"""Caches of expansions and of pins.

A cache holds short strings by key. `MemoryCache` serves one proxy, `FileCache` outlives it, and `RedisCache` is a
Valkey or Redis that several proxies share.
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
from querylift.plugin.expansion import PROMPT_VERSION, Expansion, normalize_query
from querylift.plugin.generators.base import ExpansionRequest, Generator
from querylift.plugin.settings import CacheSettings

_WRITES_BETWEEN_CLEANUPS = 1000
"""After so many writes, a cache file deletes entries that are too old or too many."""
NO_EXPANSION = "{}"
"""The value for a query to which the generator had nothing to add. It saves asking the generator again."""


class Cache(Protocol):
    """Strings by key. Each one expires after its own time to live. A cache that fails answers as if it had no entry."""

    async def get(self, key: str) -> str | None:
        """Return the value at `key`, or None."""
        ...

    def peek_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        """Return the values that this process holds in memory, without waiting."""
        ...

    async def get_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        """Return both values in one round trip."""
        ...

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        """Keep `value` for `ttl_s` seconds."""
        ...

    async def close(self) -> None:
        """Release connections and files."""
        ...


class MemoryCache:
    """At most `size` entries in this process. The least recently used leave first. `clock` gives seconds."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._entries: TLRUCache[str, tuple[str, float]] = TLRUCache(
            maxsize=size, ttu=lambda _key, entry, now: now + entry[1], timer=clock
        )

    async def get(self, key: str) -> str | None:
        return self._get_value(key)

    def peek_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return self._get_value(first_key), self._get_value(second_key)

    async def get_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return self.peek_two(first_key, second_key)

    def _get_value(self, key: str) -> str | None:
        entry = self._entries.get(key)
        return entry[0] if entry is not None else None

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        self._entries[key] = (value, ttl_s)

    async def close(self) -> None:
        self._entries.clear()


class RedisCache:
    """A Valkey or Redis that several proxies share. An error there is a miss, never a failed search.

    After an error, or after `timeout_s` without an answer, the cache is not asked for `rest_s` seconds of `clock`. So a
    silent server does not delay every search.
    """

    def __init__(self, url: str, clock: Callable[[], float], *, timeout_s: float = 0.05, rest_s: float = 5) -> None:
        try:
            from redis import asyncio as redis
        except ImportError:
            raise MissingExtra("redis", "redis") from None
        try:
            self._client = redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        except ValueError as error:
            raise SettingsError(f"cache.url cannot be used: {error}; use a URL like redis://127.0.0.1:6379") from None
        self._errors = (redis.RedisError, OSError, TimeoutError)
        self._clock = clock
        self._rest_s = rest_s
        self._rests_until_s = -math.inf

    async def get(self, key: str) -> str | None:
        return (await self.get_two(key, key))[0]

    def peek_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return None, None

    async def get_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        values = await self._call_server(self._client.mget, "querylift:" + first_key, "querylift:" + second_key)
        return (values[0], values[1]) if values else (None, None)

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        await self._call_server(self._client.set, "querylift:" + key, value, px=max(1, int(ttl_s * 1000)))

    async def close(self) -> None:
        await self._client.aclose()

    async def _call_server(self, command: Callable[..., Any], *values: str, **options: int) -> Any:
        """Return the server's reply, with its strings decoded. Return None while the cache rests, or when it fails."""
        if self._clock() < self._rests_until_s:
            return None
        try:
            reply = await command(*values, **options)
        except self._errors:
            self._rests_until_s = self._clock() + self._rest_s
            return None
        if not isinstance(reply, list):
            return reply
        return [item.decode("utf-8", "replace") if isinstance(item, bytes) else None for item in reply]


class FileCache:
    """A SQLite file that outlives the process, with the `size` entries used last in memory.

    A thread of its own reads and writes the file. `wall_clock` gives seconds since the epoch. An error is a miss.
    """

    def __init__(
        self, path: Path, size: int, clock: Callable[[], float], *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._memory = MemoryCache(size, clock)
        self._size = size
        self._write_count = 0
        self._wall_clock = wall_clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="querylift-cache")
        try:
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT, until REAL)")
            self._file.execute("DELETE FROM kept WHERE until < ?", (wall_clock(),))
        except sqlite3.Error as error:
            raise SettingsError(
                f"cache.file is {path}: it cannot be used as a cache ({error}); name another file"
            ) from None

    def peek_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return self._memory.peek_two(first_key, second_key)

    async def get(self, key: str) -> str | None:
        value = await self._memory.get(key)
        if value is not None:
            return value
        row = await self._execute_in_thread("SELECT value, until FROM kept WHERE key = ?", (key,))
        remaining_s = row[1] - self._wall_clock() if row else 0
        if row is None or remaining_s <= 0:
            return None
        await self._memory.set(key, row[0], ttl_s=remaining_s)
        return str(row[0])

    async def get_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return await self.get(first_key), await self.get(second_key)

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        await self._memory.set(key, value, ttl_s=ttl_s)
        await self._execute_in_thread(
            "INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (key, value, self._wall_clock() + ttl_s)
        )
        self._write_count += 1
        if self._write_count % _WRITES_BETWEEN_CLEANUPS == 0:
            await self._execute_in_thread("DELETE FROM kept WHERE until < ?", (self._wall_clock(),))
            surplus_keys = "SELECT key FROM kept ORDER BY until DESC LIMIT -1 OFFSET ?"
            await self._execute_in_thread(f"DELETE FROM kept WHERE key IN ({surplus_keys})", (self._size,))

    async def close(self) -> None:
        await self._memory.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        self._thread.shutdown()

    async def _execute_in_thread(self, statement: str, values: tuple[Any, ...]) -> Any:
        def execute() -> Any:
            try:
                return self._file.execute(statement, values).fetchone()
            except sqlite3.Error:
                return None

        return await asyncio.get_running_loop().run_in_executor(self._thread, execute)


def make_cache(settings: CacheSettings, clock: Callable[[], float]) -> Cache:
    """Return the cache that the table `[cache]` describes. Raises SettingsError, MissingExtra. `clock` gives seconds."""
    if settings.url is not None and settings.file is not None:
        raise SettingsError("cache.url and cache.file are both set; use one of the two")
    if settings.url is not None:
        return RedisCache(settings.url.get_secret_value(), clock)
    if settings.file is not None:
        return FileCache(settings.file, settings.size, clock)
    return MemoryCache(settings.size, clock)


def cache_key(generator: Generator, request: ExpansionRequest) -> str:
    """Return 64 hex digits. Two requests share them exactly when `generator` must answer both alike."""
    parts = [generator.identity, PROMPT_VERSION, normalize_query(request.text)]
    if generator.reads_index:
        parts += [request.index, *request.fields]
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def encode_expansion(expansion: Expansion | None) -> str:
    """Return the cache's value for `expansion`."""
    return NO_EXPANSION if expansion is None else json.dumps(expansion.to_json(), separators=(",", ":"))


def decode_expansion(value: str) -> Expansion | None:
    """Return the expansion that `encode_expansion` wrote. Raises ValueError when another program wrote `value`."""
    if value == NO_EXPANSION:
        return None
    try:
        fields = json.loads(value)
    except RecursionError as error:
        raise ValueError("a cached expansion is nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError("a cached expansion is not a JSON object")
    return Expansion.from_json(fields)
