"""The proxy's cache as a store for warming."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from querylift.plugin.cache import (
    Cache,
    FileCache,
    cache_key,
    decode_expansion,
    encode_expansion,
)
from querylift.plugin.errors import QueryliftError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest, Generator
from querylift.plugin.settings_tables.generators import CacheSettings
from querylift.plugin.warming.runner import Sleep

_PAUSES_BEFORE_WRITE_S = (0.0, 0.1, 1.0, 5.0)
_REDIS_TIMEOUT_S = 5.0


def check_cache_outlives_process(cache: CacheSettings) -> None:
    """Raise SettingsError when the cache ends with this process, or when the settings name two caches."""
    if cache.url is None and cache.file is None:
        raise SettingsError(
            "the cache is the memory of one process, so warmed expansions would be lost; set cache.file to a file that "
            "serve reads too, or cache.url to a Valkey or Redis"
        )
    if cache.url is not None and cache.file is not None:
        raise SettingsError("cache.url and cache.file are both set; use one of the two")


@contextlib.asynccontextmanager
async def open_lasting_cache(
    settings: CacheSettings, *, memory_size: int | None = None, logs_faults: bool = True
) -> AsyncIterator[Cache]:
    """Open the proxy's cache. It is closed on exit. Raises SettingsError, MissingExtra.

    `memory_size` replaces the number of entries of a cache file that are held in memory. Without `logs_faults`, the
    caller reports a cache that does not work.
    """
    check_cache_outlives_process(settings)
    cache: Cache
    if settings.file is not None:
        cache = FileCache(settings.file, memory_size or settings.size, time.monotonic)
    else:
        url = settings.url.get_secret_value() if settings.url is not None else ""
        # In the proxy a slow cache counts as a miss. Here no user waits, so the timeout is long.
        from querylift.plugin.redis_cache import RedisCache

        cache = RedisCache(url, time.monotonic, timeout_s=_REDIS_TIMEOUT_S, rest_s=0)
    cache.faults.is_logged = logs_faults
    try:
        await cache.start()
        yield cache
    finally:
        await cache.close()


@contextlib.asynccontextmanager
async def open_cache_store(cache: CacheSettings, generator: Generator) -> AsyncIterator[CacheStore]:
    """Open the proxy's cache as a store, and check that it keeps a value. Closed on exit. Raises SettingsError."""
    async with (
        open_lasting_cache(cache, logs_faults=False) as write_cache,
        open_lasting_cache(cache, memory_size=1, logs_faults=False) as read_cache,
    ):
        await write_cache.set("warming", "1", ttl_s=10)
        if await read_cache.get("warming") is None:
            setting = "cache.url" if cache.url is not None else f"cache.file ({cache.file})"
            state = write_cache.faults.describe_state()
            reason = f" ({state})" if state != "ok" else ""
            raise SettingsError(
                f"{setting} does not keep what is written to it{reason}; repair the cache, or name another one"
            )
        yield CacheStore(generator, write_cache=write_cache, read_cache=read_cache, ttl_s=cache.ttl_s)


class CacheStore:
    """The proxy's cache, with the keys that the proxy uses.

    A cache does not report a failed write. So every value is read back through `read_cache`, which must not answer from
    the memory of `write_cache`.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        write_cache: Cache,
        read_cache: Cache,
        ttl_s: float,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._generator = generator
        self._write_cache = write_cache
        self._read_cache = read_cache
        self._ttl_s = ttl_s
        self._sleep = sleep

    async def has_answer(self, request: ExpansionRequest) -> bool:
        """Whether the cache answers the request. "Nothing to add" is an answer too."""
        is_cached, _ = await read_cached_expansion(self._read_cache, cache_key(self._generator, request))
        return is_cached

    async def save(self, request: ExpansionRequest, expansion: Expansion | None) -> None:
        """Write to the cache, for its ttl_s. Raises QueryliftError when several tries fail."""
        key, value = cache_key(self._generator, request), encode_expansion(expansion)
        for pause_s in _PAUSES_BEFORE_WRITE_S:
            await self._sleep(pause_s)
            await self._write_cache.set(key, value, ttl_s=self._ttl_s)
            if await self._read_cache.get(key) == value:
                return
        raise QueryliftError(
            "the cache keeps no more entries: it is full or unreachable; repair it and run the same command again"
        )


async def read_cached_expansion(cache: Cache, key: str) -> tuple[bool, Expansion | None]:
    """Return whether the cache has a readable entry at `key`, and the expansion of that entry."""
    value = await cache.get(key)
    if value is None:
        return False, None
    try:
        return True, decode_expansion(value)
    except ValueError:
        return False, None
