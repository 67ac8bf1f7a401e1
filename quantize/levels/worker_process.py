"""The worker process of a task, seen from its parent: from the task to what became of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import querylift

_MOST_SAID = 2000
"""Characters of what the process wrote on its standard error that are looked at."""


class TaskFailed(Exception):
    """The message is llama.cpp's reason, or how its process ended."""


def run(task: str, *, on_progress: Callable[[int], None], **arguments: object) -> dict[str, Any]:
    """What the function `task` of quantize/levels/worker.py returns. Raises TaskFailed."""
    with tempfile.TemporaryFile() as said:
        with _start(said) as process:
            try:
                _send(process, {"task": task, **arguments})
                done = _receive(process, on_progress)
            except BaseException:
                process.kill()
                raise
        if done is None:
            raise TaskFailed(_ending(process.returncode, said))
    return done


def _start(said: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process, with the folder of this very package first, and no debugger started on a crash of llama.cpp."""
    folder = str(Path(querylift.__file__).parents[1])
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "querylift.quantize.levels.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
        env={**os.environ, "PYTHONPATH": path, "GGML_NO_BACKTRACE": "1"},
    )  # fmt: skip


def _send(process: subprocess.Popen[bytes], task: dict[str, object]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.flush()  # and left open: its end is the process's end
    except BrokenPipeError:  # it ended at once; what it left says why
        with suppress(BrokenPipeError):
            process.stdin.close()  # else what was not sent is tried once more when the block ends


def _receive(process: subprocess.Popen[bytes], on_progress: Callable[[int], None]) -> dict[str, Any] | None:
    """What the task returned; None where the process ended before. Raises TaskFailed."""
    assert process.stdout is not None
    for line in process.stdout:
        message = json.loads(line)
        if "error" in message:
            raise TaskFailed(" ".join(str(message["error"]).split()))
        if "done" in message:
            return dict(message["done"])
        on_progress(message["progress"])
    return None


def _ending(code: int, said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace")[-_MOST_SAID:].split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it left no word")
    return f"llama.cpp ended by {signal.Signals(-code).name}: {last}" if code < 0 else last
