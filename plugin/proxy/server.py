"""`querylift serve`: the proxy and its admin page on uvicorn, in one process with the broker and its generator."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import uvicorn

from querylift.plugin.broker import open_broker
from querylift.plugin.generators import factory
from querylift.plugin.generators.base import Generator
from querylift.plugin.proxy.address_check import check_addresses, occupy_address
from querylift.plugin.proxy.admin import Admin
from querylift.plugin.proxy.application import Proxy
from querylift.plugin.proxy.body_thread import BodyThread
from querylift.plugin.proxy.client_protocol import ClientProtocol
from querylift.plugin.proxy.connection_guard import (
    ADMIN_CONNECTIONS,
    ConnectionGuard,
    ConnectionLimits,
    raise_file_limit,
)
from querylift.plugin.proxy.engine_check import check_settings_on_engine
from querylift.plugin.proxy.journal import Journal
from querylift.plugin.proxy.metrics import Metrics
from querylift.plugin.proxy.settings_reload import SettingsReloader
from querylift.plugin.proxy.upstream import Upstream
from querylift.plugin.settings import Settings, split_address

KEEP_ALIVE_S = 900
"""How long an idle client keeps its connection. The time is long because engines never close one, and because a client
that sends a search just as its connection closes gets an error."""
SWITCH_INTERVAL_S = 0.001
"""How long the thread that reads large bodies may run before the event loop's turn. Python's own value is five times that."""
DEFAULT_LIMITS = ConnectionLimits()


@contextlib.asynccontextmanager
async def open_proxy(settings: Settings, generator: Generator | None = None) -> AsyncIterator[Proxy]:
    """Yield the proxy that `settings` describe, ready to serve. It is closed on exit. Raises SettingsError, MissingExtra.

    `generator` replaces the one that the settings name.
    """
    if generator is None:
        generator = factory.make_generator(settings.generator, settings)
    async with open_broker(settings, generator, waits_for_acceptance=True) as broker:
        upstream = Upstream(
            settings.engine,
            connect_timeout_s=settings.engine_connect_timeout_s,
            ssl=factory.build_ssl_context(settings),
        )
        body_thread = BodyThread(time.monotonic)
        try:
            journal = Journal(Metrics(), settings.log)
            journal.metrics.watch_cache(broker.cache_faults)
            yield Proxy(
                settings,
                broker=broker,
                upstream=upstream,
                journal=journal,
                body_thread=body_thread,
                clock=time.monotonic,
            )
        finally:
            await body_thread.close()
            await upstream.close()


async def serve_proxy(
    settings: Settings, read_settings: Callable[[], Settings], announce: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM. SIGHUP reads the settings again with `read_settings`.

    `announce` gets one line once the proxy listens.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    await check_addresses(settings)
    await check_settings_on_engine(settings)
    async with open_proxy(settings) as proxy:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, SettingsReloader(proxy, read_settings).reload)
        servers = [create_server(proxy, settings.listen, ConnectionLimits(raise_file_limit()))]
        if settings.admin is not None:
            servers.append(create_server(Admin(proxy), settings.admin, ConnectionLimits(ADMIN_CONNECTIONS)))
        for stop_signal in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(stop_signal, _stop_servers, servers)
        for server, address in zip(servers, (settings.listen, settings.admin), strict=False):
            await _start_listening(server, address or "")
        announce(_format_greeting(settings))
        await asyncio.gather(*(server.main_loop() for server in servers))
        await asyncio.gather(*(server.shutdown() for server in servers))


class GuardedServer(uvicorn.Server):
    """A server that looks after slow and surplus clients."""

    def __init__(self, config: uvicorn.Config, guard: ConnectionGuard) -> None:
        super().__init__(config)
        self.guard = guard

    async def on_tick(self, counter: int) -> bool:
        """Run ten times a second."""
        if counter % 10 == 0:
            now_s = asyncio.get_running_loop().time()
            self.guard.end_stalled_waits(self.server_state.connections, now_s)  # type: ignore[arg-type]
        return await super().on_tick(counter)


def create_server(app: Any, address: str, limits: ConnectionLimits = DEFAULT_LIMITS) -> GuardedServer:
    """Return a uvicorn server for an ASGI application, not yet started."""
    host, port = split_address(address)
    guard = ConnectionGuard(limits)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=functools.partial(ClientProtocol, guard=guard),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=10,
    )
    config.load()
    server = GuardedServer(config, guard)
    server.lifespan = config.lifespan_class(config)
    return server


async def _start_listening(server: uvicorn.Server, address: str) -> None:
    """Start listening. Raises SettingsError when the port is taken."""
    async with occupy_address(address):
        pass  # uvicorn itself would call sys.exit when the port is taken
    await server.startup()


def _stop_servers(servers: Sequence[uvicorn.Server]) -> None:
    for server in servers:
        server.should_exit = True


def _format_greeting(settings: Settings) -> str:
    indices = [name for name, table in settings.index.items() if table.enabled] if settings.enabled else []
    if settings.generator == "none":
        effect = "no generator is set, so every search passes through"
    elif indices:
        effect = f"{settings.generator}, expanding on {', '.join(indices)}"
    else:
        effect = f"{settings.generator}, expanding on no index (every search passes through)"
    return f"serving http://{settings.listen} -> {settings.engine_text}, {effect}"
