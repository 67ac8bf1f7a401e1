"""Reads the id of a point in time from an answer of the engine, while the answer passes to the client unchanged."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any

from querylift.plugin.proxy.asgi_types import Send

_MAX_READ_BYTES = 65_536
_ID = re.compile(rb'\A\s*\{\s*"(?:pit_)?id"\s*:\s*"([^"\\]+)"')
"""The id is the first value of an answer. OpenSearch calls it `pit_id`. Elasticsearch calls it `id` when it opens one, and
`pit_id` in the answer to a search, where it may be another one than before."""


class PitAnswerReader:
    """An ASGI `send` that passes every message on, and calls `remember` with the id before the client has the answer's end.

    An answer that is no success, or that has no id within its first 64 KB, calls nothing.
    """

    def __init__(self, send: Send, remember: Callable[[str], None]) -> None:
        self._send = send
        self._remember = remember
        self._is_reading = False
        self._decompress: Callable[[bytes], bytes] | None = None
        self._head = b""

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
        elif self._is_reading:
            self._read_part(message.get("body", b""))
        await self._send(message)

    def _begin(self, message: dict[str, Any]) -> None:
        encoding = dict(message["headers"]).get(b"content-encoding", b"identity").strip().lower()
        if encoding == b"gzip":
            decompressor = zlib.decompressobj(wbits=31)
            self._decompress = lambda part: decompressor.decompress(part, _MAX_READ_BYTES)
        self._is_reading = 200 <= message["status"] < 300 and encoding in (b"identity", b"gzip")

    def _read_part(self, part: bytes) -> None:
        try:
            self._head += self._decompress(part) if self._decompress else part[:_MAX_READ_BYTES]
        except zlib.error:
            self._is_reading = False
            return
        if match := _ID.match(self._head):
            self._remember(match[1].decode("utf-8", "replace"))
        self._is_reading = match is None and len(self._head) < _MAX_READ_BYTES
