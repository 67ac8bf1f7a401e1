"""An OpenAI-compatible embeddings endpoint for tests: a real HTTP server, with a real small encoder behind it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from querylift.plugin.fast_expander.encoder import Encoder

Edit = Callable[[dict[str, Any]], Any]


class EmbeddingsServer:
    """Answers with the vectors of `encoder`, for the model "tiny". A test may change every public attribute while it runs.

    The first requests fail with the statuses in `failures`. `edit` changes a good answer before it is sent; it may return
    bytes. `batches` holds the texts of each request, and `bodies` all of it.
    """

    def __init__(self, encoder: Encoder, *, api_key: str = "") -> None:
        self.encoder = encoder
        self.api_key = api_key
        self.failures: list[int] = []
        self.edit: Edit = lambda answer: answer
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    @property
    def batches(self) -> list[list[str]]:
        return [body["input"] for body in self.bodies]

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        body = await request.json()
        self.bodies.append(body)
        if self.failures:
            status = self.failures.pop(0)
            message = {"error": {"message": f"cannot read {body['input'][0]}"}}
            return web.json_response(message, status=status, headers={"Location": "http://127.0.0.1:9/v1/embeddings"})
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": {"message": "no such key"}}, status=401)
        if body["model"] != "tiny":
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        vectors = [self.encoder.encode_document(text).tolist() for text in body["input"]]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        answer = self.edit({"object": "list", "model": "tiny", "data": data})
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return web.Response(body=content, content_type="application/json")


@contextmanager
def run_embeddings_server(encoder: Encoder, *, api_key: str = "", port: int = 0) -> Iterator[EmbeddingsServer]:
    """Run a server in a thread of its own during the block."""
    server = EmbeddingsServer(encoder, api_key=api_key)
    is_ready, loop = threading.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/embeddings", server.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        is_ready.set()
        await is_over.wait()
        await runner.cleanup()

    is_over = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    is_ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(is_over.set)
        thread.join()
        loop.close()


def edit_vectors(change: Callable[[list[float]], Any]) -> Edit:
    """Return an edit that changes every vector of an answer."""

    def edit(answer: dict[str, Any]) -> Mapping[str, Any]:
        return {**answer, "data": [{**item, "embedding": change(item["embedding"])} for item in answer["data"]]}

    return edit
