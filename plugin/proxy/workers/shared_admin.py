"""The admin page of a proxy with several workers: it adds them up, and passes what needs one worker on to one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from yarl import URL

from querylift.plugin.proxy.admin_messages import METRICS_MEDIA_TYPE, read_body, send_answer
from querylift.plugin.proxy.asgi_types import Receive, Scope, Send

_SUMMED_NUMBERS = ("pending",)
_PATIENCE_S = 90.0
"""How long a worker may take. An explanation may wait for a language model."""
_QUICK_PATIENCE_S = 5.0
_MAX_BODY_BYTES = 64_000_000
"""The worker has a bound of its own."""
_HOP_HEADERS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"upgrade", b"expect"})


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """What the admin page of one worker answered."""

    status: int
    media_type: str
    body: bytes


class SharedAdmin:
    """ASGI application over the admin pages of the workers, which listen on the Unix sockets `sockets`.

    Each worker checks the request itself, so token and host names have the values of its last reload.
    `metrics` is the folder with the workers' counter files.
    """

    def __init__(self, sockets: Sequence[Path], metrics: Path) -> None:
        self._sockets = sockets
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = await self._build_answer(scope, receive)
        await send_answer(send, answer.status, answer.media_type, answer.body)

    async def _build_answer(self, scope: Scope, receive: Receive) -> WorkerAnswer:
        if scope["path"] == "/metrics":
            return await self._add_up_metrics(scope)
        if scope["path"] == "/_querylift/health":
            return self._add_up_health(await self._ask_all_workers(scope))
        if scope["path"] in ("/_querylift/live", "/_querylift/ready"):
            return (await self._find_first_ok_answer(scope))[1]
        body = await read_body(receive, _MAX_BODY_BYTES)
        socket, _ = await self._find_first_ok_answer({**scope, **_LIVE_QUESTION})
        answer = socket and await _ask_worker(socket, scope, body, patience_s=_PATIENCE_S)
        return answer or _NO_WORKER

    async def _add_up_metrics(self, scope: Scope) -> WorkerAnswer:
        """Return the metrics of all workers. The workers are asked first, because they check the token."""
        answers = await self._ask_all_workers(scope)
        refusal = next((answer for answer in answers if answer.status in (401, 403)), None)
        if refusal is not None or not answers:
            return refusal or _NO_WORKER
        return WorkerAnswer(200, METRICS_MEDIA_TYPE, await asyncio.to_thread(self._render_metrics))

    def _render_metrics(self) -> bytes:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._metrics))  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _add_up_health(self, answers: Sequence[WorkerAnswer]) -> WorkerAnswer:
        """Return the health of the worker that is best off, with the sums over all workers."""
        if not answers:
            return _NO_WORKER
        best_answer = min(answers, key=lambda answer: answer.status)
        reports = [json.loads(answer.body) for answer in answers]
        health: dict[str, Any] = json.loads(best_answer.body)
        sums = {name: sum(report.get(name, 0) for report in reports) for name in _SUMMED_NUMBERS if name in health}
        counts = {"workers": len(self._sockets), "workers_answering": len(answers)}
        return WorkerAnswer(best_answer.status, "application/json", json.dumps(health | sums | counts).encode())

    async def _find_first_ok_answer(self, scope: Scope) -> tuple[Path | None, WorkerAnswer]:
        """Return the first answer with status 200, and the socket of its worker, or None and another answer.

        One worker is enough, and one that hangs must not hold up the answer.
        """

        async def ask(socket: Path) -> tuple[Path, WorkerAnswer | None]:
            return socket, await _ask_worker(socket, scope, b"", patience_s=_QUICK_PATIENCE_S)

        last_answer = _NO_WORKER
        questions = [asyncio.create_task(ask(socket)) for socket in self._sockets]
        try:
            for question in asyncio.as_completed(questions):
                socket, answer = await question
                if answer is not None and answer.status == 200:
                    return socket, answer
                last_answer = answer or last_answer
        finally:
            for task in questions:
                task.cancel()
            await asyncio.gather(*questions, return_exceptions=True)
        return None, last_answer

    async def _ask_all_workers(self, scope: Scope) -> list[WorkerAnswer]:
        """Return the answers of the workers that answer."""
        questions = (_ask_worker(socket, scope, b"", patience_s=_QUICK_PATIENCE_S) for socket in self._sockets)
        return [answer for answer in await asyncio.gather(*questions) if answer is not None]


_LIVE_QUESTION = {"method": "GET", "path": "/_querylift/live", "raw_path": b"/_querylift/live", "query_string": b""}
_NO_WORKER = WorkerAnswer(
    503, "application/json", json.dumps({"status": "no-worker", "error": "no worker answers; see the log"}).encode()
)


async def _ask_worker(socket: Path, scope: Scope, body: bytes, *, patience_s: float) -> WorkerAnswer | None:
    """Send the request to the worker behind `socket`, and return its answer, or None when it does not answer."""
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    kept_headers = [(name, value) for name, value in headers if name.encode("latin-1") not in _HOP_HEADERS]
    query = scope["query_string"].decode("latin-1")
    path = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
    timeout = aiohttp.ClientTimeout(total=patience_s)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)), timeout=timeout) as session,
            session.request(
                scope["method"], URL("http://worker" + path, encoded=True), headers=kept_headers, data=body or None
            ) as answer,
        ):
            media_type = answer.headers.get("Content-Type", "application/json")
            return WorkerAnswer(answer.status, media_type, await answer.read())
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
