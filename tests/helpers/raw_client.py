"""A client that sends exactly the bytes that a test gives it, in exactly these segments."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class RawAnswer:
    """One answer: its status, the bytes of its headers in lower case, and its body."""

    status: int
    head: bytes
    body: bytes


@dataclass
class RawClient:
    """One connection to a proxy."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send_segments(self, segments: Iterable[bytes]) -> None:
        """Send each segment on its own, so that the server reads them one after another."""
        for segment in segments:
            self.writer.write(segment)
            await self.writer.drain()
            await asyncio.sleep(0.001)

    def close_sending_half(self) -> None:
        """Close the half of the connection on which requests go out."""
        self.writer.write_eof()

    async def read_answer(self) -> RawAnswer | None:
        """Return the next answer, or None when the server closed the connection before it was complete."""
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head.split()[1])
            if status == 100:
                return RawAnswer(status, head, b"")
            return RawAnswer(status, head, await self._read_body(head))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _read_body(self, head: bytes) -> bytes:
        headers = dict(line.split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:])
        if headers.get(b"transfer-encoding") != b"chunked":
            return await self.reader.readexactly(int(headers.get(b"content-length", b"0")))
        body = b""
        while size_bytes := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size_bytes + 2))[:-2]
        await self.reader.readexactly(2)
        return body

    async def is_closed_by_server(self) -> bool:
        """Wait for the end of the connection. Return False when more bytes come instead."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def connect_raw(port: int, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawClient]:
    """Yield a connection to a port of this machine, with TLS where a context is given."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


async def exchange_raw(port: int, *segments: bytes) -> RawAnswer:
    """Send one request in segments on a new connection, and return its answer."""
    async with connect_raw(port) as client:
        await client.send_segments(segments)
        answer = await client.read_answer()
        assert answer is not None, "the server closed the connection without an answer"
        return answer
