"""Hold new cache entries back until the engine has accepted a search that they belong to.

A client without credentials may send any number of searches. The engine answers each with 401, but the proxy has made an
expansion by then. Without this, such a client could push the entries of other clients out of the cache.
"""

from __future__ import annotations

from collections.abc import Callable

from cachetools import TLRUCache, TTLCache

from querylift.plugin.cache import Cache

MAX_HELD_ENTRIES = 4096
"""Entries that wait. The least recently used leave first, and are made again when they are needed."""
ACCEPTANCE_S = 60.0
"""An expansion may come after the engine's answer. It is written at once when its search was accepted so long ago."""


class HoldingCache:
    """A cache in front of `cache`. Entries are written to `cache` only after `accept` was called with their key.

    Entries that wait are found like any other, but only in this process. `clock` gives seconds.
    """

    def __init__(self, cache: Cache, clock: Callable[[], float]) -> None:
        self._cache = cache
        self.faults = cache.faults
        self._held: TLRUCache[str, tuple[str, float]] = TLRUCache(
            MAX_HELD_ENTRIES, ttu=lambda _key, entry, now: now + entry[1], timer=clock
        )
        self._accepted: TTLCache[str, bool] = TTLCache(MAX_HELD_ENTRIES, ACCEPTANCE_S, timer=clock)

    async def start(self) -> None:
        await self._cache.start()

    async def get(self, key: str) -> str | None:
        held = self._held.get(key)
        return held[0] if held is not None else await self._cache.get(key)

    def peek_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return self._prefer_held(first_key, second_key, self._cache.peek_two(first_key, second_key))

    async def get_two(self, first_key: str, second_key: str) -> tuple[str | None, str | None]:
        return self._prefer_held(first_key, second_key, await self._cache.get_two(first_key, second_key))

    async def set(self, key: str, value: str, *, ttl_s: float) -> None:
        if key in self._accepted:
            await self._cache.set(key, value, ttl_s=ttl_s)
        else:
            self._held[key] = (value, ttl_s)

    def holds_any(self, *keys: str) -> bool:
        """Whether an entry of one of `keys` waits."""
        return any(key in self._held for key in keys)

    async def accept(self, *keys: str) -> None:
        """Write the entries of `keys` that wait, and those that come within ACCEPTANCE_S, as the engine accepted a search."""
        for key in keys:
            self._accepted[key] = True
            held = self._held.pop(key, None)
            if held is not None:
                await self._cache.set(key, held[0], ttl_s=held[1])

    async def close(self) -> None:
        self._held.clear()
        await self._cache.close()

    def _prefer_held(
        self, first_key: str, second_key: str, values: tuple[str | None, str | None]
    ) -> tuple[str | None, str | None]:
        if not self._held:  # so it is as soon as every search has its answer
            return values
        first, second = self._held.get(first_key), self._held.get(second_key)
        return (first[0] if first is not None else values[0]), (second[0] if second is not None else values[1])
