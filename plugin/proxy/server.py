"""`querylift serve`: the proxy and its admin page on uvicorn, in one process, with the generator beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import uvicorn

from querylift.plugin.broker import Expander
from querylift.plugin.cache import Cache, FileCache, MemoryCache, RedisCache
from querylift.plugin.errors import QueryliftError, SettingsError
from querylift.plugin.flow import Search, explain
from querylift.plugin.generators import factory
from querylift.plugin.generators.base import Generator
from querylift.plugin.proxy.application import Proxy
from querylift.plugin.proxy.journal import Journal
from querylift.plugin.proxy.metrics import Metrics
from querylift.plugin.proxy.responder import Receive, Scope, Send
from querylift.plugin.proxy.upstream import Upstream
from querylift.plugin.settings import Settings, split_address

_log = logging.getLogger("querylift")
_clock = time.monotonic
KEEP_ALIVE_S = 900
"""How long an idle client keeps its connection. Engines never hang up; a client that sends just as we do sees a fault."""


@contextlib.asynccontextmanager
async def expander_for(settings: Settings, generator: Generator) -> AsyncIterator[Expander]:
    """An expander over `generator`, both started on entry and closed on exit."""
    expander = Expander(
        generator, _cache(settings), clock=_clock, ttl_s=settings.cache.ttl_s, pin_s=settings.cache.pin_s
    )
    try:
        await generator.start()
        yield expander
    finally:
        await expander.close()


@contextlib.asynccontextmanager
async def proxy_for(settings: Settings, generator: Generator | None = None) -> AsyncIterator[Proxy]:
    """The proxy that `settings` describe, ready to be served; closed on exit. Raises SettingsError, MissingExtra."""
    made = generator if generator is not None else factory.make(settings.generator, settings)
    async with expander_for(settings, made) as expander:
        upstream = Upstream(
            settings.engine,
            connect_timeout_s=settings.engine_connect_timeout_s,
            ssl=factory.ssl_context(settings),
        )
        try:
            journal = Journal(Metrics(), settings.log)
            yield Proxy(settings, expander=expander, upstream=upstream, journal=journal, clock=_clock)
        finally:
            await upstream.close()


async def serve(settings: Settings, reload: Callable[[], Settings], announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. SIGHUP reads the settings again through `reload`; bad ones are logged, not taken."""
    async with proxy_for(settings) as proxy:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, _reload, proxy, reload)
        servers = [_server(proxy, settings.listen)]
        if settings.admin is not None:
            servers.append(_server(Admin(proxy), settings.admin))
        for stop in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(stop, _stop, servers)
        for server, address in zip(servers, (settings.listen, settings.admin), strict=False):
            await _bind(server, address or "")
        announce(_greeting(settings))
        await asyncio.gather(*(server.main_loop() for server in servers))
        await asyncio.gather(*(server.shutdown() for server in servers))


def _cache(settings: Settings) -> Cache:
    url, file = settings.cache.url, settings.cache.file
    if url is not None and file is not None:
        raise SettingsError("cache.url and cache.file are both set; use one of the two")
    if url is not None:
        return RedisCache(url.get_secret_value(), _clock)
    if file is not None:
        return FileCache(file, settings.cache.size, _clock)
    return MemoryCache(settings.cache.size, _clock)


def _server(app: Any, address: str) -> uvicorn.Server:
    host, port = split_address(address)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
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
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    return server


async def _bind(server: uvicorn.Server, address: str) -> None:
    """Start listening. uvicorn answers a taken port with sys.exit; a sentence is more use."""
    host, port = split_address(address)
    try:
        probe = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
        probe.close()
        await probe.wait_closed()
    except OSError as error:
        raise SettingsError(f"cannot listen on {address}: {error.strerror}; name another address") from None
    await server.startup()


def _stop(servers: list[uvicorn.Server]) -> None:
    for server in servers:
        server.should_exit = True


def _reload(proxy: Proxy, reload: Callable[[], Settings]) -> None:
    """Take the settings that can change while serving; the rest needs a restart, and that is said."""
    try:
        settings = reload()
    except QueryliftError as error:
        _log.error("the settings were not taken: %s", error)
        return
    fixed = [key for key in _FIXED if getattr(settings, key) != getattr(proxy.settings, key)]
    if fixed:
        _log.warning("a restart is needed for: %s", ", ".join(fixed))
    proxy.configure(settings.model_copy(update={key: getattr(proxy.settings, key) for key in _FIXED}))
    proxy.journal.log = settings.log
    _log.info("the settings were read again")


_FIXED = (
    "engine",
    "engine_username",
    "engine_password",
    "engine_ca_file",
    "engine_connect_timeout_s",
    "listen",
    "admin",
    "generator",
    "cache",
    "llama",
    "feedback",
    "http",
)


def _greeting(settings: Settings) -> str:
    on = [name for name, table in settings.index.items() if table.enabled] if settings.enabled else []
    where = ", ".join(on) if on else "no index (every search passes through)"
    return f"querylift: http://{settings.listen} -> {settings.engine}, {settings.generator}, expanding on {where}"


@dataclass(frozen=True, slots=True)
class Admin:
    """ASGI application for operators: GET /metrics, GET /_querylift/health, GET or POST /_querylift/explain?index=NAME."""

    proxy: Proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, kind, body = await self._answer(scope, receive)
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
        if scope["path"] == "/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", self._metrics()
        if scope["path"] == "/_querylift/health":
            return 200, "application/json", json.dumps(self._health()).encode()
        if scope["path"] == "/_querylift/explain":
            return await self._explain(scope, receive)
        paths = "/metrics, /_querylift/health and /_querylift/explain"
        return 404, "application/json", json.dumps({"error": f"the paths here are {paths}"}).encode()

    def _metrics(self) -> bytes:
        metrics = self.proxy.journal.metrics
        metrics.pending.set(self.proxy.expander.pending)
        metrics.restarts.set(getattr(self.proxy.expander.generator, "restarts", 0))
        return metrics.render()

    def _health(self) -> dict[str, Any]:
        generator = self.proxy.expander.generator
        return {
            "status": "ok",
            "generator": generator.identity,
            "enabled": self.proxy.settings.enabled,
            "worker_restarts": getattr(generator, "restarts", 0),
            "pending": self.proxy.expander.pending,
        }

    async def _explain(self, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
        parameters = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        body = await _body(receive, self.proxy.settings.max_body_bytes)
        if not body:
            body = match_body(parameters.get("q", ""), parameters.get("field", "text"))
        seconds = float(self.proxy.settings.llama.max_seconds)
        search = Search(parameters.get("index"), body, deadline_s=_clock() + seconds)
        explained = explain(await self.proxy.expand(search), search)
        return 200, "application/json", json.dumps(explained).encode()


def match_body(text: str, field: str) -> bytes:
    """The body of a plain search for `text` in `field`."""
    return json.dumps({"query": {"match": {field: text}}}).encode()


async def _body(receive: Receive, limit: int) -> bytes:
    parts = []
    size = 0
    while size <= limit:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body", False):
            break
    return b"".join(parts)
