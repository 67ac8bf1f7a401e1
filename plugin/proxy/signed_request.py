"""What a client's request becomes before it is signed for AWS: without the client's account, and with a whole body."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import BinaryIO

from querylift.plugin.proxy.forwarded_headers import Headers

MAX_BODY_BYTES = 100 * 1024 * 1024
"""The most that Amazon OpenSearch Service takes in a request. Of a larger body nothing is sent."""
_MAX_MEMORY_BYTES = 262_144


class BodyTooLarge(Exception):
    """The body is larger than the service takes."""


class SpooledBody:
    """A body that came as a stream: in memory while it is small, and in a temporary file without a name otherwise."""

    def __init__(self) -> None:
        self._hash = sha256()
        self._parts: list[bytes] = []
        self._file: BinaryIO | None = None
        self.size_bytes = 0

    @property
    def content_hash(self) -> str:
        """The SHA-256 of the body, as hexadecimal digits."""
        return self._hash.hexdigest()

    async def append(self, part: bytes) -> None:
        """Add the next part. Raises BodyTooLarge."""
        self.size_bytes += len(part)
        if self.size_bytes > MAX_BODY_BYTES:
            raise BodyTooLarge
        self._parts.append(part)
        if self.size_bytes <= _MAX_MEMORY_BYTES:
            self._hash.update(part)
        else:
            await asyncio.to_thread(self._write_parts, part)

    def _write_parts(self, last_part: bytes) -> None:
        self._hash.update(last_part)
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="querylift-body-")
        self._file.write(b"".join(self._parts))
        self._parts.clear()

    def open(self) -> bytes | BinaryIO:
        """Return the body from its start, for one attempt to send it. Whoever gets a file closes it."""
        if self._file is None:
            return b"".join(self._parts)
        self._file.flush()
        copy = os.fdopen(os.dup(self._file.fileno()), "rb")
        copy.seek(0)
        return copy

    def close(self) -> None:
        """Delete the file, if there is one."""
        if self._file is not None:
            self._file.close()


async def spool_body(body: AsyncIterator[bytes]) -> SpooledBody:
    """Return the whole of `body`. Raises BodyTooLarge, and whatever `body` raises."""
    spooled = SpooledBody()
    try:
        async for part in body:
            await spooled.append(part)
    except BaseException:
        spooled.close()
        raise
    return spooled


def drop_account_headers(headers: Headers) -> Headers:
    """Return `headers` without the client's own account and signature."""
    return [(name, value) for name, value in headers if name != b"authorization" and not name.startswith(b"x-amz-")]
