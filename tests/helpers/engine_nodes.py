"""An engine of several scripted nodes, with a proxy in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import uvloop

from querylift.plugin.expansion import Expansion
from querylift.plugin.testing import ScriptedGenerator
from tests.helpers.upstream_stub import Handler, RunningProxy, StubEngine, run_proxy, run_stub_engine

REFUSING_URL = "http://127.0.0.1:9"
NodeCheck = Callable[[aiohttp.ClientSession, RunningProxy, list[StubEngine]], Awaitable[None]]


def run_with_nodes(check: NodeCheck, *handlers: Handler, extra_urls: tuple[str, ...] = ()) -> None:
    """Run `check` with a client, a proxy, and a node for every handler. `extra_urls` are the first ones of the engine."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(run_stub_engine(handler)) for handler in handlers]
            urls = [*extra_urls, *(f"http://127.0.0.1:{node.port}" for node in nodes)]
            generator = ScriptedGenerator({"download a page": Expansion(text="urlopen fetches")})
            proxy = await stack.enter_async_context(run_proxy("", generator, engine=urls))
            client = await stack.enter_async_context(aiohttp.ClientSession())
            async with asyncio.timeout(20):
                await check(client, proxy, nodes)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@asynccontextmanager
async def listen_again(node: StubEngine) -> AsyncIterator[None]:
    """Let a node listen on its port again, after it was stopped."""
    server = await asyncio.start_server(node.serve_connection, "127.0.0.1", node.port)
    try:
        yield
    finally:
        server.close()
