"""The least that a Python proxy can do, as the measure for ours: read the body, ask the engine, hand the answer on.

    python forwarder.py ENGINE_URL PORT

uvicorn with uvloop and httptools, and aiohttp as the client, as in Querylift; no routes, no limits, no watching of the client,
no care for repeated bodies, broken streams or refusals.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aiohttp
import uvicorn
import uvloop
from yarl import URL

DROPPED = frozenset((b"host", b"connection", b"content-length", b"transfer-encoding"))


class Forwarder:
    """ASGI application."""

    def __init__(self, engine: str, session: aiohttp.ClientSession) -> None:
        self._engine = engine
        self._session = session

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"] if k not in DROPPED]
        url = self._engine + scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            url += "?" + scope["query_string"].decode("latin-1")
        async with self._session.request(
            scope["method"], URL(url, encoded=True), headers=headers, data=body or None
        ) as answer:
            content = await answer.read()
            kept = [(k, v) for k, v in answer.raw_headers if k.lower() not in DROPPED]
            kept.append((b"content-length", str(len(content)).encode()))
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            await send({"type": "http.response.body", "body": content})


async def main(engine: str, port: int) -> None:
    """Serve until the process is ended."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        config = uvicorn.Config(
            Forwarder(engine, session),
            host="127.0.0.1",
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
        )
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2])))
