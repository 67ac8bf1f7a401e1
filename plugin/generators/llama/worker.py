"""The worker process, which runs llama.cpp. It reads and writes JSON lines.

Input: {"id": 1, "query": "..."} and {"cancel": 1}.
Output: first {"ready": true}, or {"fatal": reason, "adapter": whether the adapter is the cause}. Then, for each request,
{"started": 1} when it has a slot, and {"id": 1, "text": "...", "tokens": 9} or {"id": 1, "error": "..."}. {"alive": true}
follows each cancel; while the model computes, it is also sent at intervals, to show that the process does not hang.

With a process of its own, a crash of llama.cpp costs a restart and no search.
"""

from __future__ import annotations

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

from querylift.plugin.child_process import die_with_parent

if TYPE_CHECKING:
    from querylift.plugin.generators.llama.batching import Batcher

Message = dict[str, Any]
Send = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The options that the parent passes to the worker, as JSON on the command line."""

    model: str
    threads: int
    slots: int
    slot_tokens: int
    gpu_layers: int
    alive_s: float
    adapter: str = ""
    parent_pid: int = 0


class Heartbeat:
    """Sends {"alive": true} when it is called, at most once in `interval_s` seconds."""

    def __init__(self, send: Send, interval_s: float) -> None:
        self._send = send
        self._interval_s = interval_s
        self._sent_at_s = time.monotonic()

    def __call__(self) -> None:
        now_s = time.monotonic()
        if now_s - self._sent_at_s >= self._interval_s:
            self._sent_at_s = now_s
            self._send({"alive": True})


def main() -> None:
    """Load the model, and write texts until the parent closes the pipe."""
    options = WorkerOptions(**json.loads(sys.argv[1]))
    die_with_parent(options.parent_pid, signal.SIGKILL)  # even when it cannot notice the closed pipe
    # Ctrl-C reaches the whole process group, but the parent decides when the worker ends.
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # it may go to all processes of a service; the input closes at the end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    send = _open_message_output()
    inbox: SimpleQueue[Message] = SimpleQueue()
    Thread(target=_read_messages, args=(inbox,), daemon=True).start()
    heartbeat = Heartbeat(send, options.alive_s)
    batcher = _load_batcher(options, heartbeat, send)
    send({"ready": True})
    _serve_requests(batcher, inbox, send, heartbeat)


def _serve_requests(batcher: Batcher, inbox: SimpleQueue[Message], send: Send, heartbeat: Heartbeat) -> None:
    # An error in a step ends the process: the state of llama.cpp is then unknown, and the parent starts a new worker.
    while True:
        for message in _take_messages(inbox, wait=not batcher.has_work):
            _handle_message(batcher, message, send)
        if batcher.has_work:
            for request_id in batcher.fill_free_slots():
                send({"started": request_id})
            for finished in batcher.run_step():
                send({"id": finished.request_id, "text": finished.text, "tokens": finished.token_count})
        heartbeat()


def _take_messages(inbox: SimpleQueue[Message], *, wait: bool) -> Iterator[Message]:
    """Yield all messages in the queue. With `wait`, block until there is at least one."""
    if wait:
        yield inbox.get()
    try:
        while True:
            yield inbox.get_nowait()
    except Empty:
        return


def _handle_message(batcher: Batcher, message: Message, send: Send) -> None:
    from querylift.plugin.generators.llama.batching import QueryTooLong

    if "cancel" in message:
        batcher.cancel(message["cancel"])
        send({"alive": True})  # the parent expects a sign of life, and after a cancel there may be no other message
        return
    try:
        batcher.submit(message["id"], message["query"])
    except QueryTooLong as error:
        send({"id": message["id"], "error": str(error)})


def _load_batcher(options: WorkerOptions, heartbeat: Heartbeat, send: Send) -> Batcher:
    """Load the model. When that fails, send the reason and end the process."""
    try:
        from querylift.plugin.chat_template import choose_prompt_writer
        from querylift.plugin.generators.llama.batching import STEP_TOKENS, Batcher
        from querylift.plugin.generators.llama.model import AdapterLoadError, ContextSize, LlamaModel, ModelLoadError
    except (ImportError, OSError, RuntimeError) as error:
        _exit_with_error(send, f"llama.cpp itself cannot be loaded: {error}")
    # The sequence beyond the slots keeps the beginning that all prompts share.
    size = ContextSize(options.slots + 1, options.slot_tokens, STEP_TOKENS + options.slots)
    try:
        model = LlamaModel(
            Path(options.model),
            size,
            adapter=Path(options.adapter) if options.adapter else None,
            threads=options.threads,
            gpu_layers=options.gpu_layers,
            on_progress=heartbeat,
        )
    except ModelLoadError as error:
        _exit_with_error(send, str(error), adapter_failed=isinstance(error, AdapterLoadError))
    write_prompt = choose_prompt_writer(model.own_template)
    return Batcher(model, slots=options.slots, slot_tokens=options.slot_tokens, write_prompt=write_prompt)


def _exit_with_error(send: Send, reason: str, *, adapter_failed: bool = False) -> NoReturn:
    send({"fatal": reason, "adapter": adapter_failed})
    os._exit(1)


def _read_messages(inbox: SimpleQueue[Message]) -> None:
    """Put every line of standard input into the queue, and end the process when the input ends."""
    for line in sys.stdin.buffer:
        inbox.put(json.loads(line))
    os._exit(0)  # the parent closed the pipe or died; the model may be in the middle of a step


def _open_message_output() -> Send:
    """Return a function that sends messages to standard output, and redirect all other output to standard error.

    Otherwise C code that prints to standard output would break the messages.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def send(message: Message) -> None:
        try:
            out.write(json.dumps(message).encode() + b"\n")
            out.flush()
        except BrokenPipeError:
            os._exit(0)

    return send


if __name__ == "__main__":
    main()
