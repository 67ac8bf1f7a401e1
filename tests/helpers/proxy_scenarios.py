"""Run a scenario with a client, a proxy and a scripted engine, and send searches through the proxy."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import uvloop

from querylift.plugin.expansion import Expansion
from querylift.plugin.proxy.connection_guard import ConnectionLimits
from querylift.plugin.proxy.server import DEFAULT_LIMITS
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.upstream_stub import Handler, RunningProxy, StubEngine, answer_with, run_proxy, run_stub_engine

BODY = {"query": {"match": {"text": "download a page"}}}
RAW_BODY = json.dumps(BODY).encode()
JSON_HEADERS = {"Content-Type": "application/json"}
Check = Callable[[aiohttp.ClientSession, RunningProxy, StubEngine], Awaitable[None]]


def run_with_proxy(
    check: Check,
    handler: Handler | None = None,
    *,
    generator: ScriptedGenerator | None = None,
    limits: ConnectionLimits = DEFAULT_LIMITS,
    **settings: object,
) -> None:
    """Run `check` with a client, a proxy with these settings, and an engine that answers with `handler`.

    The default generator expands the query of `BODY` by "urlopen fetches".
    """
    expansions = generator or ScriptedGenerator({"download a page": Expansion(text="urlopen fetches")})

    async def main() -> None:
        async with (
            run_stub_engine(handler or answer_with()) as engine,
            run_proxy(f"http://127.0.0.1:{engine.port}", expansions, limits=limits, **settings) as proxy,
            aiohttp.ClientSession(auto_decompress=False) as client,
        ):
            async with asyncio.timeout(20):
                await check(client, proxy, engine)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the loop that `querylift serve` runs on
        runner.run(main())


async def send_search(client: aiohttp.ClientSession, proxy: RunningProxy, **options: Any) -> tuple[int, str, bytes]:
    """Send a search on the index `docs`, or another request by `options`. Return status, outcome and body."""
    path = options.pop("path", "/docs/_search")
    options.setdefault("data", RAW_BODY)
    options.setdefault("headers", JSON_HEADERS)
    async with client.request(options.pop("method", "POST"), proxy.url + path, **options) as answer:
        return answer.status, answer.headers.get("X-Querylift", ""), await answer.read()
