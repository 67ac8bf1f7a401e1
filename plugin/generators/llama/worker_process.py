"""One life of the worker process, seen from the event loop: from launch to the moment it is gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import querylift
from querylift.plugin.errors import GeneratorError
from querylift.plugin.generators.llama.worker import Options

_GRACE_S = 1.0
_LOOKS = 10
"""How often `hang_s` is divided: a hung worker is found after `hang_s` to 1.1 `hang_s`."""


class LaunchError(Exception):
    """The worker did not get ready; the message is the reason."""


class AdapterLaunchError(LaunchError):
    """The worker did not get ready, and the adapter is why."""


@dataclass(frozen=True, slots=True)
class _Reply:
    text: str = ""
    error: str = ""


class WorkerProcess:
    """A running worker. `launch` makes one; `run` must then be awaited until it returns."""

    def __init__(self, process: asyncio.subprocess.Process, *, hang_s: float) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._hang_s = hang_s
        self._ids = count(1)
        self._replies: dict[int, asyncio.Future[_Reply]] = {}
        self._owes_sign = asyncio.Event()
        self._signs = 0
        self._reason = ""
        self.answered = 0
        self.tokens = 0
        self.over = False

    @classmethod
    async def launch(cls, options: Options, *, hang_s: float, start_s: float) -> WorkerProcess:
        """Start the process and wait until the model is loaded. Raises LaunchError, OSError."""
        given = json.dumps(asdict(options) | {"parent_pid": os.getpid()})
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "querylift.plugin.generators.llama.worker", given,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=_environment(),
        )  # fmt: skip
        worker = cls(process, hang_s=hang_s)
        try:
            await worker._loaded(start_s)
        except BaseException:
            await worker._end()
            raise
        return worker

    @property
    def pid(self) -> int:
        """For failure drills."""
        return self._process.pid

    @property
    def pending(self) -> int:
        """Requests that wait for an answer."""
        return len(self._replies)

    async def ask(self, query: str, *, max_seconds: float) -> str:
        """What the model writes for `query`, of a process that is not over. Raises GeneratorError; giving up frees the slot."""
        number, reply = self._expect()
        self._send({"id": number, "query": query})
        try:
            async with asyncio.timeout(max_seconds):
                answer = await reply
        except TimeoutError:
            raise GeneratorError(f"the model did not answer within {max_seconds:g} s") from None
        finally:
            if self._replies.pop(number, None) is not None:
                self._send({"cancel": number})
        if answer.error:
            raise GeneratorError(answer.error)
        return answer.text

    async def run(self) -> str:
        """Hand out answers until the process is gone, for the reason returned; cancelling ends the process."""
        watch = asyncio.create_task(self._watch())
        try:
            while message := await self._receive():
                self._take(message)
        finally:
            watch.cancel()
            await self._end()
        return self._reason or _status(self._process.returncode)

    def _expect(self) -> tuple[int, asyncio.Future[_Reply]]:
        if not self._owes_sign.is_set():
            self._signs += 1  # the clock for a sign of life starts now, and runs on when the caller gives up
            self._owes_sign.set()
        number = next(self._ids)
        self._replies[number] = asyncio.get_running_loop().create_future()
        return number, self._replies[number]

    def _send(self, message: dict[str, Any]) -> None:
        # Not awaited: what can pile up in a worker that does not read is bounded by the queue and by `hang_s`.
        if not self._stdin.is_closing():
            self._stdin.write(json.dumps(message).encode() + b"\n")

    async def _receive(self) -> dict[str, Any] | None:
        """The next message; None where no more will come, or none that can be read."""
        try:
            message = json.loads(await self._stdout.readline() or "null")
        except ValueError:
            self._reason = "it wrote what is no message"
            return None
        return message if isinstance(message, dict) else None

    def _take(self, message: dict[str, Any]) -> None:
        self._signs += 1
        reply = self._replies.pop(message.get("id", 0), None)
        self.answered += reply is not None
        self.tokens += message.get("tokens", 0)
        if not self._replies:
            self._owes_sign.clear()
        if reply and not reply.done():
            reply.set_result(_Reply(message.get("text", ""), message.get("error", "")))

    async def _loaded(self, start_s: float) -> None:
        try:
            async with asyncio.timeout(start_s):
                message = await self._receive() or {}
                while "alive" in message:
                    message = await self._receive() or {}
        except TimeoutError:
            raise LaunchError(f"it was not loaded within {start_s:g} s") from None
        if "ready" not in message:
            refused = AdapterLaunchError if message.get("adapter") else LaunchError
            raise refused(message.get("fatal") or f"llama.cpp ended while loading it ({await self._ended()})")

    async def _watch(self) -> None:
        """Kill the process where it was asked and shows no sign of life.

        Looks are counted, not seconds: when this process or the machine was stopped, that is one look and no verdict.
        """
        seen, still = -1, 0
        while still < _LOOKS:
            await self._owes_sign.wait()
            await asyncio.sleep(self._hang_s / _LOOKS)
            still = still + 1 if self._signs == seen else 0
            seen = self._signs
        self._reason = f"it showed no sign of life for {self._hang_s:g} s"
        self._kill()

    async def _ended(self) -> str:
        await self._end()
        return _status(self._process.returncode)

    async def _end(self) -> None:
        """Fail what waits, then see the process off, which being cancelled does not cut short; safe to call twice."""
        self.over = True
        self._fail_all()
        seeing_off = asyncio.create_task(self._see_off())
        try:
            await asyncio.shield(seeing_off)
        except asyncio.CancelledError:
            await seeing_off
            raise

    async def _see_off(self) -> None:
        self._stdin.close()
        try:
            async with asyncio.timeout(_GRACE_S):
                await self._gone()
        except TimeoutError:
            self._kill()
        await self._gone()

    async def _gone(self) -> None:
        # Read to the end first: asyncio counts a process as gone only once its pipes are.
        while await self._stdout.read(1 << 16):
            pass
        await self._process.wait()

    def _fail_all(self) -> None:
        waiting = list(self._replies.values())
        self._replies.clear()
        for reply in waiting:
            if not reply.done():
                reply.set_result(_Reply(error="the model's worker ended before it answered"))

    def _kill(self) -> None:
        try:
            self._process.kill()
        except ProcessLookupError:
            pass


def _environment() -> dict[str, str]:
    """Ours, with the folder of this very package first, and no debugger started on a crash of llama.cpp."""
    folder = str(Path(querylift.__file__).parents[1])
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "GGML_NO_BACKTRACE": "1"}


def _status(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"
