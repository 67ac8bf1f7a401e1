"""The generator `llama` in a proxy with several workers: the model runs in one process for all of them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from querylift.plugin.errors import GeneratorBusy, GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion, clean_query
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.llama.model_server import MAX_LINE_BYTES, Message

_log = logging.getLogger("querylift")
_RECONNECT_S = 0.5


class ModelClient:
    """Asks the `ModelServer` behind the Unix socket `socket` for expansions by the generator that `order` describes."""

    reads_index = False
    uses_account = False
    expected_s = 1.0

    def __init__(self, socket: Path, order: Mapping[str, Any]) -> None:
        self._socket = socket
        self._order = order
        self._request_ids = count(1)
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self.identity = f"shared {order['generator']}"
        self.restarts = 0

    async def start(self) -> None:
        """Connect, and wait until the model is loaded. Raises SettingsError."""
        if self._listener is not None:
            return
        try:
            reader = await self._connect()
        except OSError as error:
            raise SettingsError(
                f"generator is {self._order['generator']!r}, and no process runs a model for the workers yet "
                f"({error.strerror}); restart querylift serve"
            ) from None
        self._listener = asyncio.create_task(self._listen(reader))

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Return the words of the model's passage, or None. Raises GeneratorError. Cancelling frees the model's slot."""
        if not clean_query(request.text):
            return None
        if self._writer is None:
            raise GeneratorError("the process that runs the model has ended; it is being restarted")
        request_id = next(self._request_ids)
        reply = self._replies[request_id] = asyncio.get_running_loop().create_future()
        self._send({"id": request_id, "query": request.text})
        try:
            message = await reply
        finally:
            if self._replies.pop(request_id, None) is not None:
                self._send({"cancel": request_id})
        if "error" in message:
            raise (GeneratorBusy if message.get("is_busy") else GeneratorError)(message["error"])
        return None if message["expansion"] is None else Expansion.from_json(message["expansion"])

    async def close(self) -> None:
        """Leave the server. Pending requests fail with GeneratorError."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            await asyncio.wait([listener])
        self._disconnect()

    async def _connect(self) -> asyncio.StreamReader:
        """Return the connection once the generator is ready, and its identity known. Raises SettingsError, OSError."""
        reader, self._writer = await asyncio.open_unix_connection(self._socket, limit=MAX_LINE_BYTES)
        try:
            self._send(dict(self._order))
            message = json.loads(await reader.readline() or "{}")
            if reason := message.get("failed"):
                raise SettingsError(reason)
            if "ready" not in message:
                raise ConnectionResetError(0, "it ended while it loaded the model")
            self._take_message(json.loads(await reader.readline() or "{}"))
        except BaseException:
            self._disconnect()
            raise
        return reader

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Take messages, and connect again whenever the connection ends."""
        while True:
            while line := await _read_line(reader):
                self._take_message(json.loads(line))
            self._disconnect()
            _log.warning("the process that runs the model has ended; expansions by it fail until it is back")
            reader = await self._connect_again()

    async def _connect_again(self) -> asyncio.StreamReader:
        while True:
            await asyncio.sleep(_RECONNECT_S)
            try:
                return await self._connect()
            except (OSError, SettingsError, ValueError):
                continue

    def _take_message(self, message: Message) -> None:
        if "identity" in message:
            self.identity, self.restarts = message["identity"], message["restarts"]
            return
        reply = self._replies.pop(message.get("id", 0), None)
        if reply is not None and not reply.done():
            reply.set_result(message)

    def _send(self, message: Message) -> None:
        # Not awaited. The server's queue bounds how much can pile up.
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    def _disconnect(self) -> None:
        """Close the connection, and let the requests that wait fail."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        replies = list(self._replies.values())
        self._replies.clear()
        for reply in replies:
            if not reply.done():
                reply.set_result({"error": "the process that runs the model ended before it answered"})


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line, or b"" at the end of the connection, whether it was ended or broken."""
    try:
        return await reader.readline()
    except OSError:
        return b""
