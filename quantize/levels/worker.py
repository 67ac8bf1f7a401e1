"""The child process in which llama.cpp quantises: one task in as a JSON line, JSON lines out.

In:  {"task": "check", ...}, "measure" or "quantise", each with the arguments of the function of that name below.
Out: {"progress": how far} as it goes on; then {"done": what the function returned} or {"error": reason}.

It is a process of its own because llama.cpp ends the one that it runs in where a file breaks what it takes for granted.
It ends when its standard input does: a parent that was killed leaves nobody behind who writes on.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api

from querylift.quantize.levels.importance_matrix import MOST_TOKENS, Array, Sums, read_means, write_sums

Progress = Callable[[int], None]

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_FUNCTION_NAMES = re.compile(r"^(?:\w+: |error loading model: |failed to quantize: )+")
_TENSOR_LINE = re.compile(r"\[ *(\d+)/ *\d+\]")
_FELL_BACK = re.compile(r"falling back to +(\w+)")
_WEIGHT = re.compile(rb"blk\.\d+\.\w+\.weight")
_F32 = 0  # GGML_TYPE_F32


class TaskError(Exception):
    """llama.cpp cannot do it; the message is its own reason."""


class Log:
    """Silences llama.cpp and keeps what it says that matters: errors, which tensors it is at, and what it falls back to."""

    def __init__(self, progress: Progress) -> None:
        self.errors: list[str] = []
        self.fallbacks: Counter[str] = Counter()
        self.progress = progress
        self._callback = api.llama_log_callback(self._take)  # must live as long as it may be called
        api.llama_log_set(self._callback, ctypes.c_void_p(0))

    def reason(self, fallback: str) -> str:
        """The first error, which is the cause: those after it say that the caller failed in turn."""
        lines = [line.strip(" =!") for text in self.errors for line in text.splitlines()]
        return next((found for line in lines if (found := _FUNCTION_NAMES.sub("", line))), fallback)

    def _take(self, level: int, text: bytes, _: object) -> None:
        line = text.decode(errors="replace")
        if level == _ERROR_LEVEL:
            self.errors.append(line)
        elif found := _TENSOR_LINE.match(line):
            self.progress(int(found[1]))
        elif found := _FELL_BACK.search(line):
            self.fallbacks[found[1].upper()] += 1


def check(log: Log, *, model: str) -> dict[str, Any]:
    """Whether llama.cpp can load the model: its architecture, its tensors' names, shapes and places in the file."""
    api.llama_model_free(_load(log, model))
    return {}


def quantise(
    log: Log, *, model: str, out: str, ftype: int, pure: bool, threads: int, importance: str
) -> dict[str, Any]:
    """Write the model to `out`; `importance` is the file of a matrix, or "". Returns what it fell back to, and how often."""
    params = api.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = ftype, pure, threads
    params.allow_requantize = True  # the parent has asked the user
    means = read_means(Path(importance)) if importance else {}  # must live while llama.cpp reads them
    if means:
        params.imatrix = _imatrix(means)
    if api.llama_model_quantize(os.fsencode(model), os.fsencode(out), ctypes.byref(params)) != 0:
        raise TaskError(log.reason("it cannot be quantised"))
    return {"fallbacks": dict(sorted(log.fallbacks.items()))}


def measure(log: Log, *, model: str, out: str, texts: Sequence[str], threads: int) -> dict[str, Any]:
    """Write to `out` the sums of squares of what goes into each weight while the model reads `texts`."""
    eye, tokens = Eye(), 0
    loaded = _load(log, model)
    context = _open(log, loaded, eye, threads)
    for number, text in enumerate(texts, 1):
        row = _tokenize(loaded, text)
        if api.llama_decode(context, _batch(row)) != 0:
            raise TaskError(log.reason("it cannot read a text"))
        api.llama_memory_clear(api.llama_get_memory(context), False)
        tokens += len(row)
        log.progress(number)
    if not eye.squares:
        raise TaskError("this version of llama.cpp does not show what goes into its weights")
    if not all(np.isfinite(squares).all() for squares in eye.squares.values()):
        raise TaskError("it computes numbers that are none")
    write_sums(Path(out), Sums(eye.squares, eye.counts, len(texts)))
    return {"tokens": tokens, "weights": len(eye.squares)}


class Tensor(ctypes.Structure):
    """The beginning of ggml.h's ggml_tensor, up to the name. Were it laid out otherwise, no name would be a weight's."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


class Eye:
    """Looks at every step of the model's computation and adds up the squares of what a layer's weights are multiplied by.

    The output's weight is left out, as llama.cpp's own tools leave it out.
    """

    def __init__(self) -> None:
        self.squares: dict[str, Array] = {}
        self.counts: Counter[str] = Counter()
        self.callback = api.ggml_backend_sched_eval_callback(self._look)

    def _look(self, address: int, ask: bool, _: object) -> bool:
        """Asked first whether a step is of interest, then called again when it has been computed."""
        step = Tensor.from_address(address)
        if not (step.src[0] and step.src[1]):
            return False
        weight, inputs = step.src[0].contents, step.src[1].contents
        if not _is_product(step, weight, inputs):
            return False
        if not ask:
            name = weight.name.decode()
            numbers = _numbers(inputs)
            self.squares[name] = self.squares.get(name, 0.0) + np.square(numbers, dtype=np.float64).sum(axis=(0, 1, 2))
            self.counts[name] += numbers.size // numbers.shape[-1]
        return True


def _is_product(step: Tensor, weight: Tensor, inputs: Tensor) -> bool:
    """Whether the step is a matrix product of a layer's weight: by the shapes, as operations are numbered anew at times."""
    fits = weight.ne[0] == inputs.ne[0] and weight.ne[1] == step.ne[0] and weight.ne[2] == weight.ne[3] == 1
    return fits and inputs.type == _F32 and bool(_WEIGHT.fullmatch(weight.name))


def _numbers(tensor: Tensor) -> Array:
    """The tensor's numbers where they lie, columns last."""
    first = np.ctypeslib.as_array(ctypes.cast(tensor.data, ctypes.POINTER(ctypes.c_float)), shape=(1,))
    return np.lib.stride_tricks.as_strided(first, shape=tensor.ne[::-1], strides=tensor.nb[::-1])


def _load(log: Log, model: str) -> Any:
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = False  # the weights stay where the file has them, so that loading costs nothing
    loaded = api.llama_model_load_from_file(os.fsencode(model), params)
    if not loaded:
        raise TaskError(log.reason("it cannot be loaded"))
    return loaded


def _open(log: Log, model: Any, eye: Eye, threads: int) -> Any:
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = MOST_TOKENS
    params.n_threads = params.n_threads_batch = threads
    params.op_offload = params.offload_kqv = False
    params.no_perf = True
    params.cb_eval = eye.callback
    context = api.llama_init_from_model(model, params)
    if not context or not api.llama_get_memory(context):
        raise TaskError(log.reason("it is no model that writes text"))
    return context


def _tokenize(model: Any, text: str) -> Any:
    """As the served model reads it, cut at MOST_TOKENS."""
    data = text.encode()
    tokens = (api.llama_token * (len(data) + 8))()  # a token is at least a byte, but for those put around a text
    count = api.llama_tokenize(api.llama_model_get_vocab(model), data, len(data), tokens, len(tokens), True, True)
    if count < 1:
        raise TaskError("its tokenizer finds no token in a text")
    return (api.llama_token * min(count, MOST_TOKENS))(*tokens[: min(count, MOST_TOKENS)])


def _batch(tokens: Any) -> Any:
    """The tokens as one sequence, each with what comes next: the last layer leaves out those whose next nobody asks for."""
    batch = api.llama_batch_get_one(tokens, len(tokens))
    batch.logits = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
    return batch


def _imatrix(means: Mapping[str, Array]) -> Any:
    """Where `means` are, as llama.cpp takes it: ended by an entry without a name."""
    entries = (api.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def main() -> None:
    """Do the one task that comes in."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    send = _private_output()
    task = json.loads(sys.stdin.buffer.readline())
    Thread(target=_end_with_the_parent, daemon=True).start()
    api.llama_backend_init()
    try:
        send({"done": _do(task, lambda count: send({"progress": count}))})
    except (TaskError, OSError, ValueError) as error:
        send({"error": str(error)})


def _do(task: dict[str, Any], progress: Progress) -> dict[str, Any]:
    tasks: dict[str, Callable[..., dict[str, Any]]] = {"check": check, "measure": measure, "quantise": quantise}
    return tasks[task.pop("task")](Log(progress), **task)


def _end_with_the_parent() -> None:
    # Not through sys.stdin, whose lock Python asks for when it ends.
    while os.read(0, 1):
        pass
    os._exit(1)


def _private_output() -> Callable[[dict[str, Any]], None]:
    """What sends a message on standard output, which nothing else that the process prints can reach any more."""
    stream = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        stream.write(json.dumps(message).encode() + b"\n")

    return send


if __name__ == "__main__":
    main()
