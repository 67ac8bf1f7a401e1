"""A wire between the proxy and a real engine that a test can slow down or cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Relay:
    """Bytes both ways. `delay_s` holds every answer back; `cut_after` drops the line after so many bytes of answers."""

    host: str
    engine_port: int
    delay_s: float = 0
    cut_after: int | None = None
    port: int = 0
    open_lines: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_lines += 1
        engine_reader, engine_writer = await asyncio.open_connection(self.host, self.engine_port)
        asks = asyncio.create_task(self._pump(reader, engine_writer))
        answers = asyncio.create_task(self._answers(engine_reader, writer))
        await asyncio.wait([asks, answers], return_when=asyncio.FIRST_COMPLETED)
        for task in (asks, answers):
            task.cancel()
        await asyncio.gather(asks, answers, return_exceptions=True)
        engine_writer.close()
        writer.transport.abort()
        self.open_lines -= 1

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while data := await reader.read(65536):
            await asyncio.sleep(self.delay_s)
            if self.cut_after is not None and passed + len(data) > self.cut_after:
                writer.write(data[: self.cut_after - passed])
                await writer.drain()
                return
            passed += len(data)
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def relay_to(engine_url: str) -> AsyncIterator[Relay]:
    """A relay on a free port."""
    parts = urlsplit(engine_url)
    relay = Relay(parts.hostname or "", parts.port or 80)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        async with asyncio.timeout(5):
            while relay.open_lines:
                await asyncio.sleep(0.01)
