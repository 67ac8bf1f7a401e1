"""Read the start of a search's answer until it says whether a shard failed."""

from __future__ import annotations

import re
import zlib

from querylift.plugin.proxy.forwarded_headers import Headers

_KEY = b'"_shards"'
_FAILED_SHARDS = re.compile(rb'"_shards"\s*:\s*\{[^{}]*?"failed"\s*:\s*(\d)')
OVERLOADED_SHARD = re.compile(rb'"type"\s*:\s*"(?:(?:es_)?rejected_execution|circuit_breaking)_exception"')
"""A shard that fails in this way rejects no query, as the statuses 429 and 503 do not."""
MAX_TEXT_BYTES = 33_554_432
"""Decompression of an answer stops here."""


def can_read_answer(headers: Headers, encoding: bytes) -> bool:
    """Whether the answer with these headers is JSON, either plain or gzip."""
    media_type = dict(headers).get(b"content-type", b"json")
    return b"json" in media_type.lower() and encoding in (b"", b"identity", b"gzip")


class ShardReport:
    """The object `_shards` of one answer. It stands before the hits, but a long scroll id may stand before it.

    `is_seen` says whether the report has arrived, and `has_failed_shard` what it says. A shard that was too busy has failed
    as well, but it rejected nothing.
    """

    def __init__(self, encoding: bytes) -> None:
        self.is_seen = False
        self.has_failed_shard = False
        self._decompressor = zlib.decompressobj(wbits=31) if encoding == b"gzip" else None
        self._text = bytearray()
        self._searched_bytes = 0

    @property
    def shows_rejection(self) -> bool:
        """Whether a shard failed, and not because it was too busy."""
        return self.has_failed_shard and not OVERLOADED_SHARD.search(self._text)

    def add_bytes(self, part: bytes) -> bool:
        """Read more bytes of the answer as they came. Return whether the report has arrived."""
        if not self.is_seen:
            self._text += self._decompress(part)
            self._search_text()
        return self.is_seen

    def _decompress(self, part: bytes) -> bytes:
        if self._decompressor is None:
            return part
        try:
            return self._decompressor.decompress(part, MAX_TEXT_BYTES)
        except zlib.error:
            return b""

    def _search_text(self) -> None:
        start = self._text.find(_KEY, max(0, self._searched_bytes - len(_KEY)))
        if start < 0:
            self._searched_bytes = len(self._text)
            return
        self._searched_bytes = start
        match = _FAILED_SHARDS.match(self._text, start)
        if match is not None:
            self.is_seen = True
            self.has_failed_shard = match[1] != b"0"
