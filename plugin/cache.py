"""Caches of expansions and of pins.

A cache holds short strings by key. `MemoryCache` serves one proxy, and `FileCache` outlives it. The module `redis_cache` has
the cache that several proxies share.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from cachetools import TLRUCache

from querylift.plugin.cache_faults import CacheFaults, Operation
from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import PROMPT_VERSION, Expansion, normalize_query
from querylift.plugin.generators.base import ExpansionRequest, Generator
from querylift.plugin.settings_tables.generators import CacheSettings
from querylift.plugin.shared_pins import PIN_PREFIX, SharedPins

_log = logging.getLogger("querylift")
_WRITES_BETWEEN_CLEANUPS = 1000
"""After so many writes, a cache file deletes entries that are too old or too many."""
_BUSY_S = 1.0
"""How long an operation waits for another process that is writing. Each write takes less than a millisecond."""
NO_EXPANSION = "{}"
"""The value for a query to which the generator had nothing to add. It saves asking the generator again."""


class Cache(Protocol):
    """Strings by key. Each one expires after its own time to live. A cache that fails answers as if it had no entry.

    `faults` holds what failed.
    """

    faults: CacheFaults

    async def start(self) -> None:
        """Find out whether the cache works, and log when it does not."""
        ...

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
        self.faults = CacheFaults("the cache in memory", clock)

    async def start(self) -> None:
        """Do nothing: memory works."""

    async def get(self, key: str) -> str | None:
        return self.peek(key)

    def peek_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return self.peek(first_key), self.peek(second_key)

    async def get_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return self.peek_two(first_key, second_key)

    def peek(self, key: str) -> str | None:
        """Return the value at `key`, or None."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None else None

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        self._entries[key] = (value, ttl_s)

    async def close(self) -> None:
        self._entries.clear()


class FileCache:
    """A SQLite file that outlives the process, with the `size` entries used last in memory. Several processes may share it.

    An expansion never changes while it is cached, so each process may hold it in memory. Pins change, and stand in a file of
    their own beside it, NAME-pins. A thread of its own reads and writes the SQLite file. `wall_clock` gives seconds since the
    epoch. An error is a miss.
    """

    def __init__(
        self, path: Path, size: int, clock: Callable[[], float], *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._memory = MemoryCache(size, clock)
        self._size = size
        self._write_count = 0
        self._wall_clock = wall_clock
        self.faults = CacheFaults(f"the cache file {path}", clock)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="querylift-cache")
        try:
            _make_private_file(path)
            self._file = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT, until REAL)")
            self._file.execute("DELETE FROM kept WHERE until < ?", (wall_clock(),))
            self._pins = SharedPins(path.with_name(f"{path.name}-pins"), wall_clock)
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SettingsError(
                f"cache.file is {path}: it cannot be used as a cache ({reason}); name another file"
            ) from None

    async def start(self) -> None:
        """Do nothing: a file that cannot be read and written was refused when it was opened."""

    def peek_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return self._peek(first_key), self._peek(second_key)

    def _peek(self, key: str) -> str | None:
        return self._pins.get(key) if key.startswith(PIN_PREFIX) else self._memory.peek(key)

    async def get(self, key: str) -> str | None:
        if key.startswith(PIN_PREFIX):
            return self._pins.get(key)
        value = self._memory.peek(key)
        if value is not None:
            return value
        row = await self._execute_in_thread("read", "SELECT value, until FROM kept WHERE key = ?", (key,))
        remaining_s = row[1] - self._wall_clock() if row else 0
        if row is None or remaining_s <= 0:
            return None
        await self._memory.set(key, row[0], ttl_s=remaining_s)
        return str(row[0])

    async def get_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return await self.get(first_key), await self.get(second_key)

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        if key.startswith(PIN_PREFIX):
            self._pins.set(key, value, ttl_s=ttl_s)
            return
        await self._memory.set(key, value, ttl_s=ttl_s)
        await self._execute_in_thread(
            "write", "INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (key, value, self._wall_clock() + ttl_s)
        )
        self._write_count += 1
        if self._write_count % _WRITES_BETWEEN_CLEANUPS == 0:
            await self._execute_in_thread("write", "DELETE FROM kept WHERE until < ?", (self._wall_clock(),))
            surplus_keys = "SELECT key FROM kept ORDER BY until DESC LIMIT -1 OFFSET ?"
            await self._execute_in_thread("write", f"DELETE FROM kept WHERE key IN ({surplus_keys})", (self._size,))

    async def close(self) -> None:
        await self._memory.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        self._thread.shutdown()
        self._pins.close()

    async def _execute_in_thread(self, operation: Operation, statement: str, values: tuple[Any, ...]) -> Any:
        """Return the statement's first row, or None when there is none or the file cannot be used."""

        def execute() -> Any:
            return self._file.execute(statement, values).fetchone()

        try:
            row = await asyncio.get_running_loop().run_in_executor(self._thread, execute)
        except sqlite3.Error as error:
            self.faults.record_failure(operation, str(error))
            return None
        self.faults.record_success(operation)
        return row


def _make_private_file(path: Path) -> None:
    """Create the file for its owner alone. SQLite gives the files beside it the same mode. An old file keeps its mode.

    Raises OSError.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            _log.warning("the cache file %s can be opened by other users; run chmod 600 on it", path)


def make_cache(settings: CacheSettings, clock: Callable[[], float]) -> Cache:
    """Return the cache that the table `[cache]` describes. Raises SettingsError, MissingExtra. `clock` gives seconds."""
    if settings.url is not None and settings.file is not None:
        raise SettingsError("cache.url and cache.file are both set; use one of the two")
    if settings.url is not None:
        from querylift.plugin.redis_cache import RedisCache

        return RedisCache(settings.url.get_secret_value(), clock)
    if settings.file is not None:
        return FileCache(settings.file, settings.size, clock)
    return MemoryCache(settings.size, clock)


def cache_key(generator: Generator, request: ExpansionRequest) -> str:
    """Return 64 hex digits. Two requests share them exactly when `generator` must answer both alike."""
    parts = [generator.identity, PROMPT_VERSION, normalize_query(request.text)]
    if generator.reads_index:
        # A list as JSON, because clients choose these texts, and could put any separator into one of them.
        parts.append(json.dumps([request.index, *request.fields]))
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
