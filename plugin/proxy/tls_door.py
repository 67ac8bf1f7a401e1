"""TLS with clients: a connection until its handshake is done. Then a `ClientProtocol` takes its place."""

from __future__ import annotations

import asyncio
from typing import Any

from querylift.plugin.proxy.client_protocol import ClientProtocol
from querylift.plugin.proxy.connection_guard import ClientWait, ConnectionGuard
from querylift.plugin.tls import ServerCertificate

SHUTDOWN_S = 60
"""How long a connection that is being closed waits for its client to take the rest of an answer."""


class TlsDoor(asyncio.Protocol):
    """A client's connection in its handshake.

    The guard counts it like any other connection. A server that left handshakes to the event loop would not: then any
    number of clients that never finish theirs could take all files of the process.
    """

    def __init__(self, *, guard: ConnectionGuard, certificate: ServerCertificate, **options: Any) -> None:
        """`options` are what uvicorn gives each of its protocols."""
        self._guard = guard
        self._certificate = certificate
        self._options = options
        self._connections: set[Any] = options["server_state"].connections
        self._loop: asyncio.AbstractEventLoop = options.get("_loop") or asyncio.get_event_loop()
        self._transport: Any = None
        self._early_bytes = b""
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._connections.add(self)
        if not self._guard.admit(self, len(self._connections)):
            self._leave()
            self._transport.abort()  # what a refusal says could not be read before the handshake
            return
        self._handshake = self._loop.create_task(self._run_handshake())

    def data_received(self, data: bytes) -> None:
        """Keep what comes before the handshake has begun. Reading goes on when it begins."""
        self._early_bytes += data
        self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a client that left before the handshake had begun."""
        self._leave()
        if self._handshake is not None:
            self._handshake.cancel()

    async def _run_handshake(self) -> None:
        client = ClientProtocol(guard=self._guard, wire=self._transport, **self._options)
        self._loop.call_soon(self._pass_early_bytes)
        try:
            tls_transport = await self._loop.start_tls(
                self._transport,
                client,
                self._certificate.context,
                server_side=True,
                ssl_handshake_timeout=self._guard.limits.head_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError:  # what is not TLS, a client that does not trust the certificate, one that left, one that waits
            self._transport.abort()
            return
        finally:
            self._leave()
        if tls_transport is not None and not tls_transport.is_closing():
            client.connection_made(tls_transport)

    def _pass_early_bytes(self) -> None:
        """Give the bytes that came early to the handshake, which is the protocol of the transport now."""
        handshake_protocol = self._transport.get_protocol()
        while self._early_bytes and handshake_protocol is not self:
            buffer = handshake_protocol.get_buffer(len(self._early_bytes))
            part = self._early_bytes[: len(buffer)]
            buffer[: len(part)] = part
            handshake_protocol.buffer_updated(len(part))
            self._early_bytes = self._early_bytes[len(part) :]

    def _leave(self) -> None:
        self._connections.discard(self)
        self._guard.forget(self)

    def shutdown(self) -> None:
        """Close the connection, because the server stops. uvicorn calls this."""
        self._transport.abort()

    def describe_wait(self) -> ClientWait | None:
        """Return that the proxy waits for the handshake, which has as much time as the head of a request."""
        return ClientWait("head", 0, 0)

    def end_wait(self, wait: ClientWait) -> None:
        """Close the connection, because the client took too long."""
        self._transport.abort()

    def close_idle(self) -> None:
        """Close the connection to make room for another."""
        self._transport.abort()
