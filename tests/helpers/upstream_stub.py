"""A scripted engine, for what a real one cannot be made to do on the wire: broken streams, odd headers, delays."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from querylift.plugin.generators.base import Generator
from querylift.plugin.proxy.application import Proxy
from querylift.plugin.proxy.connection_guard import ConnectionLimits
from querylift.plugin.proxy.server import DEFAULT_LIMITS, GuardedServer, create_server, open_proxy
from querylift.plugin.settings import parse_settings
from querylift.plugin.tls import ServerCertificate, open_server_certificate

MAX_BODY_BYTES = 100_000_000
"""A larger body that is announced with `Expect` is not asked for, as engines do it."""


@dataclass
class ReceivedRequest:
    """One request as the engine received it."""

    start_line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def get_header_values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


Handler = Callable[[ReceivedRequest, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class StubEngine:
    """A small HTTP/1.1 server, so that the test decides every byte of an answer.

    A request to `/early` is answered before its body is read.
    """

    handler: Handler
    requests: list[ReceivedRequest] = field(default_factory=list)
    client_hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    connection_count: int = 0
    hung_up_count: int = 0

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        try:
            while request := await _read_request(reader, writer):
                self.requests.append(request)
                await self.handler(request, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.client_hung_up.set()
            self.hung_up_count += 1
            writer.close()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> ReceivedRequest | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    start_line, *header_lines = head[:-4].split(b"\r\n")
    headers = [(name, value.strip()) for name, value in (line.split(b":", 1) for line in header_lines)]
    values = {name.lower(): value for name, value in headers}
    if b" /early" in start_line:
        return ReceivedRequest(start_line, headers, b"")
    if values.get(b"expect") == b"100-continue":
        if int(values.get(b"content-length", b"0")) > MAX_BODY_BYTES:
            return ReceivedRequest(start_line, headers, b"")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if values.get(b"transfer-encoding") == b"chunked":
        return ReceivedRequest(start_line, headers, await _read_chunked_body(reader))
    return ReceivedRequest(start_line, headers, await reader.readexactly(int(values.get(b"content-length", b"0"))))


async def _read_chunked_body(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size_bytes := int(await reader.readline(), 16):
        body += (await reader.readexactly(size_bytes + 2))[:-2]
    await reader.readline()
    return body


def answer_with(body: bytes = b'{"hits":{}}', *, status: str = "200 OK", extra: bytes = b"") -> Handler:
    """Return a handler that gives every request the same answer. `extra` holds more header lines."""

    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        length = b"content-length: %d\r\n" % len(body)
        head = b"HTTP/1.1 " + status.encode() + b"\r\n" + length + extra + b"\r\n"
        writer.write(head if request.start_line.startswith(b"HEAD") else head + body)

    return handle


@asynccontextmanager
async def run_stub_engine(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[StubEngine]:
    """Yield a scripted engine on a free port, with TLS where a context is given."""
    engine = StubEngine(handler)
    server = await asyncio.start_server(engine.serve_connection, "127.0.0.1", 0, limit=2**22, ssl=tls)
    engine.port = server.sockets[0].getsockname()[1]
    try:
        yield engine
    finally:
        server.close()


@dataclass(frozen=True)
class RunningProxy:
    """A proxy that serves, with its port and URL."""

    application: Proxy
    server: GuardedServer
    port: int
    url: str


@asynccontextmanager
async def run_proxy(
    engine_url: str, generator: Generator, *, limits: ConnectionLimits = DEFAULT_LIMITS, **settings: object
) -> AsyncIterator[RunningProxy]:
    """Yield a proxy on a free port, in this process and on uvicorn, as `querylift serve` runs it."""
    values = {"index": {"docs": {}}, "budget_ms": 2000, "engine": engine_url} | settings
    checked_settings = parse_settings(values)
    certificate = open_server_certificate(checked_settings)
    async with (
        open_proxy(checked_settings, generator) as application,
        serve_application(application, limits, certificate) as server,
    ):
        port = find_port(server)
        scheme = "http" if certificate is None else "https"
        yield RunningProxy(application, server, port, f"{scheme}://127.0.0.1:{port}")


@asynccontextmanager
async def serve_application(
    application: Any, limits: ConnectionLimits = DEFAULT_LIMITS, certificate: ServerCertificate | None = None
) -> AsyncIterator[GuardedServer]:
    """Serve an ASGI application on a free port, as `querylift serve` does, and yield the server."""
    server = create_server(application, "127.0.0.1:0", limits, certificate)
    await server.startup()
    loop = asyncio.create_task(server.main_loop())
    try:
        yield server
    finally:
        server.should_exit = True
        await loop
        await server.shutdown()


def find_port(server: GuardedServer) -> int:
    """Return the port on which a server listens."""
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port
