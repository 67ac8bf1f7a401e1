"""A teacher for tests: a real HTTP server with an OpenAI-compatible endpoint that answers as a test says."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from querylift.trainer.teaching.plan import TeachingPlan

QUERIES = {"1": "what causes a rainbow", "2": "why do cats purr", "3": "history of the steam engine"}
PASSAGE = "Certainly! Here is a passage:\n\nSunlight bends in drops of water."
Handler = Callable[[web.Request], Awaitable[web.Response]]


def make_plan(url: str = "http://127.0.0.1:9/v1", **changes: Any) -> TeachingPlan:
    """Return a plan for the model "m" with short answers."""
    return replace(TeachingPlan("m", url, max_tokens=20), **changes)


def make_answer(
    content: Any = PASSAGE, tokens_in: int = 50, tokens_out: int = 10, finish_reason: str = "stop", **message: Any
) -> web.Response:
    """Return a chat completion with this content, these other keys of its message, and this usage."""
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    body = {"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return web.json_response(body)


def make_completion(text: Any, *, finish_reason: str = "stop") -> web.Response:
    """Return a completion with this text."""
    choice = {"index": 0, "finish_reason": finish_reason, "text": text, "logprobs": None}
    usage = {"prompt_tokens": 40, "completion_tokens": 5, "total_tokens": 45}
    body = {"id": "a", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return web.json_response(body)


async def answer_with_passage(request: web.Request) -> web.Response:
    """Answer every request with `PASSAGE`."""
    return make_answer()


def make_failing_handler(status: int, times: int, headers: Mapping[str, str] | None = None) -> Handler:
    """Return a handler that fails so many times with `status`, and answers with `PASSAGE` from then on."""
    request_count = 0

    async def handle(request: web.Request) -> web.Response:
        nonlocal request_count
        request_count += 1
        if request_count <= times:
            return web.json_response({"error": {"message": "not\nnow"}}, status=status, headers=headers)
        return make_answer()

    return handle


class TeacherServer:
    """A server that answers by `handler`, and records the requests."""

    def __init__(self, handler: Handler = answer_with_passage) -> None:
        self._handler = handler
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str] = []
        self.times_s: list[float] = []
        self.open_requests = self.most_open_requests = 0
        self.url = ""

    async def __aenter__(self) -> TeacherServer:
        app = web.Application()
        for path in ("/v1/chat/completions", "/v1/completions"):
            app.router.add_post(path, self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.authorizations.append(request.headers["Authorization"])
        self.times_s.append(time.monotonic())
        self.open_requests += 1
        self.most_open_requests = max(self.open_requests, self.most_open_requests)
        try:
            return await self._handler(request)
        finally:
            self.open_requests -= 1

    @property
    def questions(self) -> list[str]:
        """The last message of each request, in the order of arrival."""
        return [body["messages"][-1]["content"] for body in self.bodies]
