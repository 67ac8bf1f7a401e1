"""Run a task in a worker process and return its result. This is the parent's side of `worker.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from querylift.plugin.child_process import build_worker_environment

_MAX_ERROR_CHARACTERS = 2000
"""Characters at the end of the worker's standard error that are searched for a reason."""


class TaskFailed(Exception):
    """A task failed. The message is llama.cpp's reason, or how the worker ended."""


def run_in_worker(task: str, *, on_progress: Callable[[int], None], **arguments: object) -> dict[str, Any]:
    """Run a task of `worker.TASKS` in a new process and return its result. Raises TaskFailed."""
    with tempfile.TemporaryFile() as stderr:
        with _start_worker(stderr) as process:
            try:
                _send_task(process, {"task": task, **arguments})
                result = _receive_result(process, on_progress)
            except BaseException:
                process.kill()
                raise
        if result is None:
            raise TaskFailed(_explain_exit(process.returncode, stderr))
    return result


def _start_worker(stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the worker."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "querylift.quantize.levels.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
        env=build_worker_environment(os.environ),
    )  # fmt: skip


def _send_task(process: subprocess.Popen[bytes], task: dict[str, object]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.flush()  # stdin stays open: the worker ends when it is closed
    except BrokenPipeError:  # the worker has ended already; its standard error has the reason
        with suppress(BrokenPipeError):
            process.stdin.close()  # otherwise Popen's exit would try to send the buffer again


def _receive_result(process: subprocess.Popen[bytes], on_progress: Callable[[int], None]) -> dict[str, Any] | None:
    """Return the task's result, or None when the worker ended without one. Raises TaskFailed."""
    assert process.stdout is not None
    for line in process.stdout:
        message = json.loads(line)
        if "error" in message:
            raise TaskFailed(" ".join(str(message["error"]).split()))
        if "done" in message:
            return dict(message["done"])
        on_progress(message["progress"])
    return None


def _explain_exit(code: int, stderr: IO[bytes]) -> str:
    """Return the last line that the worker printed, with the signal when one ended it."""
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace")[-_MAX_ERROR_CHARACTERS:].split("\n")
    reason = next((line.strip() for line in reversed(lines) if line.strip()), "it printed no reason")
    return f"{signal.Signals(-code).name} ended llama.cpp: {reason}" if code < 0 else reason
