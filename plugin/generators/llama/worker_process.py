"""One worker process, as the event loop sees it: from its launch until it has ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from querylift.plugin.child_process import build_worker_environment, describe_exit_code
from querylift.plugin.errors import GeneratorError
from querylift.plugin.generators.llama.worker import WorkerOptions

_log = logging.getLogger("querylift")
_GRACE_S = 1.0
_HANG_CHECKS = 10
"""Number of checks in `hang_s` seconds. A hung worker is found after `hang_s` to 1.1 `hang_s` seconds."""


class LaunchError(Exception):
    """The worker did not become ready. The message is the reason."""


class AdapterLaunchError(LaunchError):
    """The worker did not become ready because of the adapter."""


@dataclass(frozen=True, slots=True)
class _Reply:
    text: str = ""
    error: str = ""


class WorkerProcess:
    """A running worker. `launch` makes one. Its owner must then await `run_until_end`."""

    def __init__(self, process: asyncio.subprocess.Process, *, hang_s: float) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._hang_s = hang_s
        self._request_ids = count(1)
        self._replies: dict[int, asyncio.Future[_Reply]] = {}
        self._limits: dict[int, tuple[asyncio.Timeout, float]] = {}
        self._owes_message = asyncio.Event()
        self._sign_count = 0
        self._end_reason = ""
        self._error_output = asyncio.create_task(_log_lines(process.stderr))
        self.answered_count = 0
        self.written_tokens = 0
        self.has_ended = False

    @classmethod
    async def launch(cls, options: WorkerOptions, *, hang_s: float, start_s: float) -> WorkerProcess:
        """Start the process and wait until the model is loaded. Raises LaunchError, OSError."""
        options_json = json.dumps(asdict(options) | {"parent_pid": os.getpid()})
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "querylift.plugin.generators.llama.worker", options_json,
            stdin=pipe, stdout=pipe, stderr=pipe, env=build_worker_environment(os.environ),
        )  # fmt: skip
        worker = cls(process, hang_s=hang_s)
        try:
            await worker._wait_until_loaded(start_s)
        except BaseException:
            await worker.end_process()
            raise
        return worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def pending_count(self) -> int:
        """Number of requests that wait for an answer."""
        return len(self._replies)

    async def write_passage(self, query: str, *, max_seconds: float) -> str:
        """Return the model's text for `query`. Raises GeneratorError. Must not be called after the process has ended.

        `max_seconds` is counted from the moment when the request has a slot. Otherwise a worker with a long queue would
        give up every request that it begins. When the caller gives up, the worker drops the request, which frees its slot.
        """
        request_id, reply = self._register_request()
        self._send_message({"id": request_id, "query": query})
        try:
            async with asyncio.timeout(None) as limit:
                self._limits[request_id] = limit, max_seconds
                answer = await reply
        except TimeoutError:
            raise GeneratorError(f"the model did not answer within {max_seconds:g} s") from None
        finally:
            self._limits.pop(request_id, None)
            if self._replies.pop(request_id, None) is not None:
                self._send_message({"cancel": request_id})
        if answer.error:
            raise GeneratorError(answer.error)
        return answer.text

    async def run_until_end(self) -> str:
        """Deliver answers until the process has ended. Return why it ended. Cancelling this ends the process."""
        hang_check = asyncio.create_task(self._kill_when_hung())
        try:
            while message := await self._receive_message():
                self._handle_message(message)
        finally:
            hang_check.cancel()
            await self.end_process()
        return self._end_reason or describe_exit_code(self._process.returncode)

    def _register_request(self) -> tuple[int, asyncio.Future[_Reply]]:
        if not self._owes_message.is_set():
            # The time limit for a sign of life starts now, and continues when the caller gives up.
            self._sign_count += 1
            self._owes_message.set()
        request_id = next(self._request_ids)
        self._replies[request_id] = asyncio.get_running_loop().create_future()
        return request_id, self._replies[request_id]

    def _send_message(self, message: dict[str, Any]) -> None:
        # Not awaited. The queue and `hang_s` bound how much can pile up for a worker that does not read.
        if not self._stdin.is_closing():
            self._stdin.write(json.dumps(message).encode() + b"\n")

    async def _receive_message(self) -> dict[str, Any] | None:
        """Return the next message, or None when the output has ended or is not a message."""
        try:
            message = json.loads(await self._stdout.readline() or "null")
        except ValueError:
            self._end_reason = "it wrote a line that is not a message"
            return None
        return message if isinstance(message, dict) else None

    def _handle_message(self, message: dict[str, Any]) -> None:
        self._sign_count += 1
        if "started" in message:
            self._start_limit(message["started"])
            return
        reply = self._replies.pop(message.get("id", 0), None)
        self.answered_count += reply is not None
        self.written_tokens += message.get("tokens", 0)
        if not self._replies:
            self._owes_message.clear()
        if reply and not reply.done():
            reply.set_result(_Reply(message.get("text", ""), message.get("error", "")))

    def _start_limit(self, request_id: int) -> None:
        """Let the time of a request begin, because it has a slot now."""
        if request_id in self._limits:
            limit, max_seconds = self._limits[request_id]
            limit.reschedule(asyncio.get_running_loop().time() + max_seconds)

    async def _wait_until_loaded(self, start_s: float) -> None:
        """Return when the worker reports that the model is loaded. Raises LaunchError."""
        try:
            async with asyncio.timeout(start_s):
                message = await self._receive_message() or {}
                while "alive" in message:
                    message = await self._receive_message() or {}
        except TimeoutError:
            raise LaunchError(f"it was not loaded within {start_s:g} s") from None
        if "ready" in message:
            return
        error_class = AdapterLaunchError if message.get("adapter") else LaunchError
        if reason := message.get("fatal"):
            raise error_class(reason)
        await self.end_process()
        exit_code = describe_exit_code(self._process.returncode)
        raise error_class(f"llama.cpp ended while loading it ({exit_code})")

    async def _kill_when_hung(self) -> None:
        """Kill the process when it owes an answer and shows no sign of life.

        This counts checks, not seconds. A pause of this process or of the machine is then one check, and kills nothing.
        """
        last_sign_count, checks_without_sign = -1, 0
        while checks_without_sign < _HANG_CHECKS:
            await self._owes_message.wait()
            await asyncio.sleep(self._hang_s / _HANG_CHECKS)
            checks_without_sign = checks_without_sign + 1 if self._sign_count == last_sign_count else 0
            last_sign_count = self._sign_count
        self._end_reason = f"it showed no sign of life for {self._hang_s:g} s"
        self._kill_process()

    async def end_process(self) -> None:
        """Fail the pending requests, and end the process even when this task is cancelled. It is safe to call this twice."""
        self.has_ended = True
        self._fail_pending_requests()
        stop = asyncio.create_task(self._stop_process())
        try:
            await asyncio.shield(stop)
        except asyncio.CancelledError:
            await stop
            raise

    async def _stop_process(self) -> None:
        """Close the worker's input, give it a moment to end, and then kill it."""
        self._stdin.close()
        try:
            async with asyncio.timeout(_GRACE_S):
                await self._wait_for_exit()
        except TimeoutError:
            self._kill_process()
        await self._wait_for_exit()

    async def _wait_for_exit(self) -> None:
        # The output must be read to its end: asyncio waits for the pipes before it reports that a process has exited.
        while await self._stdout.read(1 << 16):
            pass
        await asyncio.shield(self._error_output)
        await self._process.wait()

    def _fail_pending_requests(self) -> None:
        replies = list(self._replies.values())
        self._replies.clear()
        for reply in replies:
            if not reply.done():
                reply.set_result(_Reply(error="the model's worker ended before it answered"))

    def _kill_process(self) -> None:
        try:
            self._process.kill()
        except ProcessLookupError:
            pass


async def _log_lines(output: asyncio.StreamReader) -> None:
    """Log what the worker prints beside its messages, such as the reason why llama.cpp ended it."""
    while True:
        try:
            line = await output.readline()
        except ValueError:
            continue  # the line was too long, and was dropped
        if not line:
            return
        if text := line.decode("utf-8", "replace").strip():
            _log.warning("the model's worker printed: %s", text)
