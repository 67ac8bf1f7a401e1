"""The child process that runs llama.cpp: JSON lines in, JSON lines out.

In:  {"id": 1, "query": "..."} and {"cancel": 1}.
Out: {"ready": true} or {"fatal": reason, "adapter": whether that is to blame} once; then {"id": 1, "text": "...", "tokens": 9} or
{"id": 1, "error": "..."} for each request, and {"alive": true} after a cancel and at intervals while the model computes, as
a sign that it does.

It is a process of its own so that a crash of llama.cpp costs a restart and no search.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from querylift.plugin.generators.llama.batching import Batcher

Message = dict[str, Any]
Send = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What the parent decides, passed as JSON on the command line."""

    model: str
    threads: int
    slots: int
    slot_tokens: int
    gpu_layers: int
    alive_s: float
    adapter: str = ""
    parent_pid: int = 0


class Pulse:
    """Sends a sign of life when called, at most every `every_s` seconds."""

    def __init__(self, send: Send, every_s: float) -> None:
        self._send = send
        self._every_s = every_s
        self._last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            self._send({"alive": True})


def main() -> None:
    """Load the model and write until the parent closes the pipe."""
    options = Options(**json.loads(sys.argv[1]))
    _die_with(options.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us in its own time
    send = _private_output()
    inbox: SimpleQueue[Message] = SimpleQueue()
    Thread(target=_receive, args=(inbox,), daemon=True).start()
    pulse = Pulse(send, options.alive_s)
    batcher = _load(options, pulse, send)
    send({"ready": True})
    _serve(batcher, inbox, send, pulse)


def _serve(batcher: Batcher, inbox: SimpleQueue[Message], send: Send, pulse: Pulse) -> None:
    # An error of a step is not handled: the context's state is unknown then, and a new process is the way out.
    while True:
        for message in _messages(inbox, wait=not batcher.busy):
            _obey(batcher, message, send)
        if batcher.busy:
            for done in batcher.step():
                send({"id": done.request, "text": done.text, "tokens": done.tokens})
        pulse()


def _messages(inbox: SimpleQueue[Message], *, wait: bool) -> Iterator[Message]:
    """All messages that have come, at least one where `wait` is set."""
    if wait:
        yield inbox.get()
    try:
        while True:
            yield inbox.get_nowait()
    except Empty:
        return


def _obey(batcher: Batcher, message: Message, send: Send) -> None:
    from querylift.plugin.generators.llama.batching import TooLong

    if "cancel" in message:
        batcher.cancel(message["cancel"])
        send({"alive": True})  # the parent waits for a sign, and nothing else may be left to send one
        return
    try:
        batcher.submit(message["id"], message["query"])
    except TooLong as error:
        send({"id": message["id"], "error": str(error)})


def _load(options: Options, pulse: Pulse, send: Send) -> Batcher:
    """The model, ready; where it cannot be, the reason is sent and the process ends."""
    try:
        from querylift.plugin.generators.llama.batching import STEP_TOKENS, Batcher
        from querylift.plugin.generators.llama.model import AdapterError, LlamaModel, LoadError, Shape
    except (ImportError, OSError, RuntimeError) as error:
        _fatal(send, f"llama.cpp itself cannot be loaded: {error}")
    # One sequence more than slots: it keeps what all prompts begin with.
    shape = Shape(options.slots + 1, options.slot_tokens, STEP_TOKENS + options.slots)
    try:
        model = LlamaModel(
            Path(options.model),
            shape,
            adapter=Path(options.adapter) if options.adapter else None,
            threads=options.threads,
            gpu_layers=options.gpu_layers,
            on_progress=pulse,
        )
    except LoadError as error:
        _fatal(send, str(error), adapter=isinstance(error, AdapterError))
    return Batcher(model, slots=options.slots, slot_tokens=options.slot_tokens)


def _fatal(send: Send, reason: str, *, adapter: bool = False) -> NoReturn:
    send({"fatal": reason, "adapter": adapter})
    os._exit(1)


def _receive(inbox: SimpleQueue[Message]) -> None:
    for line in sys.stdin.buffer:
        inbox.put(json.loads(line))
    os._exit(0)  # the parent closed the pipe or is gone; the model may be in the middle of a step


def _private_output() -> Send:
    """Sends on what is standard output now; what C code prints there from now on goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def send(message: Message) -> None:
        try:
            out.write(json.dumps(message).encode() + b"\n")
            out.flush()
        except BrokenPipeError:
            os._exit(0)

    return send


def _die_with(parent_pid: int) -> None:
    """On Linux, have the kernel end this process with its parent, even where it cannot notice the closed pipe."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


if __name__ == "__main__":
    main()
