"""Runs language models for several workers of a proxy, so that one worker process of llama.cpp batches for all of them.

It listens on a Unix socket and speaks JSON lines. A client first names a generator, and gets {"ready": true} or
{"failed": sentence}. Then it sends {"id": 1, "query": "..."} and {"cancel": 1}, and gets {"id": 1, "expansion": {...} or null}
or {"id": 1, "error": "...", "is_busy": false}. {"identity": "...", "restarts": 0} comes before the first answer, and again
whenever it has changed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from querylift.plugin.errors import GeneratorBusy, GeneratorError, QueryliftError
from querylift.plugin.generators.base import ExpansionRequest, Generator

Message = dict[str, Any]
MAX_LINE_BYTES = 2**24
"""No query is longer: a search with a longer body passes through unread."""
_STATE_S = 0.5
"""How often a client is told what has changed, at most."""


@dataclass(slots=True)
class _SharedGenerator:
    """A generator, and the number of clients that use it."""

    generator: Generator
    client_count: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_started: bool = False


class ModelServer:
    """Makes each generator once with `make`, from the first message of a client. It is closed when its last client leaves."""

    def __init__(self, make: Callable[[Mapping[str, Any]], Generator]) -> None:
        self._make = make
        self._shared: dict[str, _SharedGenerator] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, socket: Path) -> asyncio.Server:
        """Listen on the Unix socket, which is replaced."""
        return await asyncio.start_unix_server(self._serve_client, socket, limit=MAX_LINE_BYTES)

    async def close(self) -> None:
        """End all connections, and close the generators."""
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            order = json.loads(await reader.readline() or "null")
            if isinstance(order, dict):
                async with self._open_generator(order) as generator:
                    _send(writer, {"ready": True})
                    await _Connection(generator, reader, writer).serve()
        except QueryliftError as error:
            _send(writer, {"failed": str(error)})
        except (OSError, ValueError, asyncio.CancelledError):
            pass  # the client is gone or sent no message, or this process ends
        finally:
            self._connections.discard(connection)
            writer.close()

    @asynccontextmanager
    async def _open_generator(self, order: Mapping[str, Any]) -> AsyncIterator[Generator]:
        """Yield the started generator that a client names. Raises QueryliftError."""
        key = json.dumps(order, sort_keys=True)
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _SharedGenerator(self._make(order))
        shared.client_count += 1
        try:
            async with shared.lock:
                if not shared.is_started:
                    await shared.generator.start()
                    shared.is_started = True
            yield shared.generator
        finally:
            shared.client_count -= 1
            if not shared.client_count:
                del self._shared[key]
                await shared.generator.close()


class _Connection:
    """One client, and its requests that are under way."""

    def __init__(self, generator: Generator, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._generator = generator
        self._reader = reader
        self._writer = writer
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._last_state: Message = {}

    async def serve(self) -> None:
        """Answer until the client leaves. Its requests end then too."""
        state_task = asyncio.create_task(self._send_states())
        try:
            while line := await self._reader.readline():
                self._handle_message(json.loads(line))
        finally:
            tasks = [state_task, *self._requests.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _handle_message(self, message: Message) -> None:
        if "cancel" in message:
            if request := self._requests.get(message["cancel"]):
                request.cancel()
            return
        request_id = message["id"]
        request = asyncio.create_task(self._answer(request_id, message["query"]))
        self._requests[request_id] = request
        request.add_done_callback(lambda _: self._requests.pop(request_id, None))

    async def _answer(self, request_id: int, query: str) -> None:
        try:
            expansion = await self._generator.expand(ExpansionRequest(query))
            reply: Message = {"expansion": expansion.to_json() if expansion else None}
        except GeneratorError as error:
            reply = {"error": str(error), "is_busy": isinstance(error, GeneratorBusy)}
        self._send_state()
        _send(self._writer, {"id": request_id} | reply)

    async def _send_states(self) -> None:
        while True:
            self._send_state()
            await asyncio.sleep(_STATE_S)

    def _send_state(self) -> None:
        state = {"identity": self._generator.identity, "restarts": getattr(self._generator, "restarts", 0)}
        if state != self._last_state:
            self._last_state = state
            _send(self._writer, state)


def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    # Not awaited: a client has at most as many answers as it may have requests, and each is short.
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")
