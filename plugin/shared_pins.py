"""Pins in a memory-mapped file, so that every process of this machine sees a new one at once, without waiting.

A pin is a small fact that must not be stale: whether the later pages of a query stay without an expansion. The workers of
a proxy answer pages of one query in turn. If each kept pins in memory of its own, they would disagree.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path

PIN_PREFIX = "pin:"
"""How the broker's keys of pins begin."""
_PLACES = 65_536
_PLACE = struct.Struct("=8sd8s")
"""A place holds a digest of the key, when the pin ends in seconds since the epoch, and its value of eight bytes at most."""


class SharedPins:
    """The pins in the file `path`, which is created. Raises OSError. `wall_clock` gives seconds since the epoch.

    Each key has one place of 65,536. Another key may take the place, and then a pin is lost: a later page of that query may
    rank differently. Two processes that write one place at the same time can at worst lose a pin too.
    """

    def __init__(self, path: Path, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # All zeros, which no key has. A full disc is an error now, and not a signal when a place is written.
            os.posix_fallocate(descriptor, 0, _PLACES * _PLACE.size)
            self._places = mmap.mmap(descriptor, _PLACES * _PLACE.size)
        finally:
            os.close(descriptor)

    def get(self, key: str) -> str | None:
        """Return the pin of `key`, or None when it has none."""
        offset, digest = _find_place(key)
        stored_digest, until_s, value = _PLACE.unpack_from(self._places, offset)
        if stored_digest != digest or self._wall_clock() >= until_s:
            return None
        return value.rstrip(b"\0").decode("ascii", "replace")  # type: ignore[no-any-return]

    def set(self, key: str, value: str, *, ttl_s: float) -> None:
        """Keep a value of eight bytes at most for `ttl_s` seconds."""
        offset, digest = _find_place(key)
        _PLACE.pack_into(self._places, offset, digest, self._wall_clock() + ttl_s, value.encode())

    def close(self) -> None:
        """Unmap the file. It stays."""
        self._places.close()


def _find_place(key: str) -> tuple[int, bytes]:
    """Return the offset of the key's place, and the digest that stands in it."""
    digest = hashlib.blake2b(key.encode(), digest_size=10).digest()
    return int.from_bytes(digest[8:], "big") * _PLACE.size, digest[:8]
