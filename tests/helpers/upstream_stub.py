"""A scripted engine for wire facts that a real one cannot be made to show: broken streams, odd headers, delays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from querylift.plugin.generators.base import Generator
from querylift.plugin.proxy.application import Proxy
from querylift.plugin.proxy.server import create_server, open_proxy
from querylift.plugin.settings import parse_settings


@dataclass
class Received:
    """One request as the engine got it."""

    start_line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


Handler = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class StubEngine:
    """An HTTP/1.1 server in a page, so that every byte of an answer is the test's."""

    handler: Handler
    received: list[Received] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await _read(reader):
                self.received.append(request)
                await self.handler(request, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.hung_up.set()
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    start, *lines = head[:-4].split(b"\r\n")
    headers = [(k, v.strip()) for k, v in (line.split(b":", 1) for line in lines)]
    lowered = {k.lower(): v for k, v in headers}
    if lowered.get(b"transfer-encoding") == b"chunked":
        return Received(start, headers, await _chunked(reader))
    return Received(start, headers, await reader.readexactly(int(lowered.get(b"content-length", b"0"))))


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


def answering(body: bytes = b'{"hits":{}}', *, status: str = "200 OK", extra: bytes = b"") -> Handler:
    """A handler that answers every request alike."""

    async def handle(request: Received, writer: asyncio.StreamWriter) -> None:
        length = b"content-length: %d\r\n" % len(body)
        head = b"HTTP/1.1 " + status.encode() + b"\r\n" + length + extra + b"\r\n"
        writer.write(head if request.start_line.startswith(b"HEAD") else head + body)

    return handle


@asynccontextmanager
async def stub_engine(handler: Handler) -> AsyncIterator[StubEngine]:
    """A stub engine on a free port."""
    stub = StubEngine(handler)
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0, limit=2**22)
    stub.port = server.sockets[0].getsockname()[1]
    try:
        yield stub
    finally:
        server.close()


@dataclass(frozen=True)
class Front:
    """A proxy that serves, and where."""

    proxy: Proxy
    port: int
    url: str


@asynccontextmanager
async def proxy_before(engine_url: str, generator: Generator, **settings: object) -> AsyncIterator[Front]:
    """Our proxy on a free port, in this process and on uvicorn as it is served."""
    given = {"index": {"docs": {}}, "budget_ms": 2000, "engine": engine_url} | settings
    async with open_proxy(parse_settings(given), generator) as proxy:
        server = create_server(proxy, "127.0.0.1:0")
        await server.startup()
        port = server.servers[0].sockets[0].getsockname()[1]
        loop = asyncio.create_task(server.main_loop())
        try:
            yield Front(proxy, port, f"http://127.0.0.1:{port}")
        finally:
            server.should_exit = True
            await loop
            await server.shutdown()
