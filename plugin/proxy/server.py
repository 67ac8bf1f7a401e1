"""`querylift serve`: the proxy and its admin page on uvicorn, in one process with the generators.

The folder `workers` runs several such processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import uvicorn

from querylift.plugin.brokers import open_brokers
from querylift.plugin.engine.access import build_engine_access, build_signer
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
from querylift.plugin.proxy.query_records.file_place import check_record_file
from querylift.plugin.proxy.settings_reload import SettingsReloader
from querylift.plugin.proxy.tls_door import TlsDoor
from querylift.plugin.proxy.upstream import Upstream
from querylift.plugin.settings import Settings, format_generator_names, split_address
from querylift.plugin.tls import ServerCertificate, open_server_certificate

if TYPE_CHECKING:
    from querylift.plugin.proxy.tracing import SearchTracer

KEEP_ALIVE_S = 900
"""How long an idle client keeps its connection. The time is long because engines never close one, and because a client
that sends a search just as its connection closes gets an error."""
SWITCH_INTERVAL_S = 0.001
"""How long the thread that reads large bodies may run before the event loop's turn. Python's own value is five times that."""
DEFAULT_LIMITS = ConnectionLimits()


@contextlib.asynccontextmanager
async def open_proxy(settings: Settings, generator: Generator | None = None) -> AsyncIterator[Proxy]:
    """Yield the proxy that `settings` describe, ready to serve. It is closed on exit. Raises SettingsError, MissingExtra.

    `generator` takes the place of the one at the settings' top level.
    """
    if settings.log.searches_file is not None:
        check_record_file(settings.log.searches_file)
    made_generators = {} if generator is None else {settings.generator[0]: generator}
    access = build_engine_access(settings)
    if access.signer is not None:
        await access.signer.start()
    tracer = _open_tracer(settings)
    metrics = Metrics()
    async with open_brokers(
        settings,
        made_generators=made_generators,
        waits_for_acceptance=True,
        make_meter=metrics.make_generation_meter,
    ) as brokers:
        upstream = Upstream(
            settings.engine,
            connect_timeout_s=settings.engine_connect_timeout_s,
            ssl=access.ssl,
            signer=access.signer,
        )
        body_thread = BodyThread(time.monotonic)
        metrics.watch_cache(brokers.cache_faults)
        journal = Journal(metrics, settings)
        try:
            yield Proxy(
                settings,
                brokers=brokers,
                upstream=upstream,
                journal=journal,
                body_thread=body_thread,
                clock=time.monotonic,
                tracer=tracer,
            )
        finally:
            await body_thread.close()
            await journal.close()
            if tracer is not None:
                await tracer.close()
            await upstream.close()


def _open_tracer(settings: Settings) -> SearchTracer | None:
    """Return what makes the traces of searches, or None when the settings name no collector. Raises MissingExtra."""
    if settings.tracing.endpoint is None:
        return None
    from querylift.plugin.proxy.tracing import SearchTracer

    return SearchTracer(settings)


async def serve_proxy(
    settings: Settings,
    read_settings: Callable[[], Settings],
    announce: Callable[[str], None],
    early_signals: Sequence[int] = (),
) -> None:
    """Serve until SIGINT or SIGTERM. SIGHUP reads the settings again with `read_settings`.

    `announce` gets one line once the proxy listens. `early_signals` holds a SIGHUP that came before it could be handled.
    """
    await run_servers(
        settings,
        read_settings,
        lambda: announce(format_greeting(settings)),
        certificate=await check_before_start(settings),
        early_signals=early_signals,
    )


async def check_before_start(settings: Settings) -> ServerCertificate | None:
    """Check what can be checked before anything is loaded, and return the certificate if the settings name one.

    Raises SettingsError, MissingExtra.
    """
    certificate = open_server_certificate(settings)
    await check_addresses(settings)
    if signer := build_signer(settings):
        await signer.start()  # before the engine is asked, so that missing credentials are the only thing said
    await check_settings_on_engine(settings)
    return certificate


async def run_servers(
    settings: Settings,
    read_settings: Callable[[], Settings],
    announce: Callable[[], None],
    *,
    certificate: ServerCertificate | None,
    start_listening: Callable[[GuardedServer], Awaitable[None]] | None = None,
    stop_signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
    early_signals: Sequence[int] = (),
) -> None:
    """Serve until one of `stop_signals`. The settings must have been checked.

    `start_listening` replaces listening on `listen`.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with open_proxy(settings) as proxy:
        loop = asyncio.get_running_loop()
        reloader = SettingsReloader(proxy, read_settings, certificate)
        loop.add_signal_handler(signal.SIGHUP, reloader.reload)
        if early_signals:
            reloader.reload()
        servers = [create_server(proxy, settings.listen, ConnectionLimits(raise_file_limit()), certificate)]
        if settings.admin is not None:
            admin_limits = ConnectionLimits(ADMIN_CONNECTIONS)
            admin_certificate = None if is_unix_socket(settings.admin) else certificate
            servers.append(create_server(Admin(proxy), settings.admin, admin_limits, admin_certificate))
        for stop_signal in stop_signals:
            loop.add_signal_handler(stop_signal, _begin_draining, proxy, servers[0])
        for server, address in zip(servers, (settings.listen, settings.admin), strict=False):
            if start_listening is not None and server is servers[0]:
                await start_listening(server)
            else:
                await _start_listening(server, address or "")
        announce()
        await run_until_stopped(*servers)


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


def create_server(
    app: Any, address: str, limits: ConnectionLimits = DEFAULT_LIMITS, certificate: ServerCertificate | None = None
) -> GuardedServer:
    """Return a uvicorn server for an ASGI application, not yet started. With a certificate it speaks TLS only.

    An address may be the path of a Unix socket.
    """
    host, port = ("", 0) if is_unix_socket(address) else split_address(address)
    guard = ConnectionGuard(limits)
    connection_options = {"guard": guard} if certificate is None else {"guard": guard, "certificate": certificate}
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        uds=address if is_unix_socket(address) else None,
        loop="uvloop",
        http=functools.partial(ClientProtocol if certificate is None else TlsDoor, **connection_options),  # type: ignore
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
    if not is_unix_socket(address):
        async with occupy_address(address):
            pass  # uvicorn itself would call sys.exit when the port is taken
    await server.startup()


def _begin_draining(proxy: Proxy, server: uvicorn.Server) -> None:
    proxy.is_draining = True
    stop_server(server)


def stop_server(server: uvicorn.Server) -> None:
    """Tell a server to stop."""
    server.should_exit = True


async def run_until_stopped(server: uvicorn.Server, *admin_servers: uvicorn.Server) -> None:
    """Serve until `server` is told to stop and has answered its requests. Admin pages answer until then."""
    admin_loops = [asyncio.ensure_future(admin_server.main_loop()) for admin_server in admin_servers]
    await server.main_loop()
    await server.shutdown()
    for admin_server in admin_servers:
        stop_server(admin_server)
    await asyncio.gather(*admin_loops)
    await asyncio.gather(*(admin_server.shutdown() for admin_server in admin_servers))


def is_unix_socket(address: str) -> bool:
    """Whether an address is the path of a Unix socket. Only Querylift itself sets such a one, for its workers."""
    return address.startswith("/")


def format_greeting(settings: Settings) -> str:
    """Return the line that says what is served."""
    scheme = "http" if settings.tls_cert is None else "https"
    return f"serving {scheme}://{settings.listen} -> {settings.engine_text}, {_describe_expansion(settings)}"


def _describe_expansion(settings: Settings) -> str:
    """Return which generators expand searches on which indices: "expander:docs.expander, expanding on docs"."""
    indices_by_generators: dict[str, list[str]] = {}
    for index, table in settings.index.items():
        names = settings.get_generator_names(table)
        if settings.enabled and table.enabled and names != ("none",):
            indices_by_generators.setdefault(format_generator_names(names), []).append(index)
    if indices_by_generators:
        return "; ".join(f"{names}, expanding on {', '.join(on)}" for names, on in indices_by_generators.items())
    if settings.generator == ("none",):
        return "no generator is set, so every search passes through"
    return f"{format_generator_names(settings.generator)}, expanding on no index (every search passes through)"
