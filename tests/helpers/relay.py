"""A connection between the proxy and a real engine that a test can slow down or cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Relay:
    """Copies bytes both ways. `delay_s` delays every answer. `cut_after_bytes` cuts after so many bytes of answers."""

    host: str
    engine_port: int
    delay_s: float = 0
    cut_after_bytes: int | None = None
    port: int = 0
    open_connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        engine_reader, engine_writer = await asyncio.open_connection(self.host, self.engine_port)
        requests = asyncio.create_task(self._copy_requests(reader, engine_writer))
        answers = asyncio.create_task(self._copy_answers(engine_reader, writer))
        await asyncio.wait([requests, answers], return_when=asyncio.FIRST_COMPLETED)
        for task in (requests, answers):
            task.cancel()
        await asyncio.gather(requests, answers, return_exceptions=True)
        engine_writer.close()
        writer.transport.abort()
        self.open_connections -= 1

    async def _copy_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def _copy_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        copied_bytes = 0
        while data := await reader.read(65536):
            await asyncio.sleep(self.delay_s)
            if self.cut_after_bytes is not None and copied_bytes + len(data) > self.cut_after_bytes:
                writer.write(data[: self.cut_after_bytes - copied_bytes])
                await writer.drain()
                return
            copied_bytes += len(data)
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def run_relay(engine_url: str) -> AsyncIterator[Relay]:
    """Yield a relay on a free port."""
    parts = urlsplit(engine_url)
    relay = Relay(parts.hostname or "", parts.port or 80)
    server = await asyncio.start_server(relay.serve_connection, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        async with asyncio.timeout(5):
            while relay.open_connections:
                await asyncio.sleep(0.01)
