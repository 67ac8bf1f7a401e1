"""The worker process in which llama.cpp quantises.

It reads one task as a JSON line, {"task": NAME, ...}, with the arguments of the function that `TASKS` names. It writes JSON
lines: {"progress": count} during the work, then {"done": result} or {"error": reason}.

llama.cpp ends its own process when a file breaks its assumptions, so it needs a process of its own. The worker also ends
when its standard input is closed, so a killed parent leaves no worker behind.
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

from querylift.quantize.levels.importance_matrix import (
    MAX_TOKENS_PER_TEXT,
    ActivationSums,
    Array,
    read_mean_squares,
    write_importance_matrix,
)

ReportCount = Callable[[int], None]

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_FUNCTION_NAMES = re.compile(r"^(?:\w+: |error loading model: |failed to quantize: )+")
_TENSOR_LINE = re.compile(r"\[ *(\d+)/ *\d+\]")
_FALLBACK_LINE = re.compile(r"falling back to +(\w+)")
_LAYER_WEIGHT = re.compile(rb"blk\.\d+\.\w+\.weight")
_F32 = 0  # GGML_TYPE_F32


class TaskError(Exception):
    """llama.cpp cannot do the task. The message is its reason."""


class LlamaCppLog:
    """Receives llama.cpp's log lines instead of the terminal. Keeps errors and fallback types, and reports progress."""

    def __init__(self, report_count: ReportCount) -> None:
        self.errors: list[str] = []
        self.fallbacks: Counter[str] = Counter()
        self.report_count = report_count
        self._callback = api.llama_log_callback(self._handle_log_line)  # must live as long as it may be called
        api.llama_log_set(self._callback, ctypes.c_void_p(0))

    def find_reason(self, default: str) -> str:
        """Return the first error, which is the cause. Later ones report only that a caller failed too."""
        lines = [line.strip(" =!") for text in self.errors for line in text.splitlines()]
        reasons = (_FUNCTION_NAMES.sub("", line) for line in lines)
        return next(filter(None, reasons), default)

    def _handle_log_line(self, level: int, text: bytes, _: object) -> None:
        line = text.decode(errors="replace")
        if level == _ERROR_LEVEL:
            self.errors.append(line)
        elif tensor_match := _TENSOR_LINE.match(line):
            self.report_count(int(tensor_match[1]))
        elif fallback_match := _FALLBACK_LINE.search(line):
            self.fallbacks[fallback_match[1].upper()] += 1


def check_model(log: LlamaCppLog, *, model: str) -> dict[str, Any]:
    """Raise TaskError when llama.cpp cannot load the model, with the names, shapes and places of its tensors."""
    api.llama_model_free(_load_model(log, model))
    return {}


def quantise_model(
    log: LlamaCppLog, *, model: str, out: str, ftype: int, pure: bool, threads: int, importance: str
) -> dict[str, Any]:
    """Write the quantised model to `out` and return how many tensors fell back to which type.

    `importance` is the file of an importance matrix, or "".
    """
    params = api.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = ftype, pure, threads
    params.allow_requantize = True  # the parent process has asked the user
    mean_squares = read_mean_squares(Path(importance)) if importance else {}  # must live while llama.cpp reads them
    if mean_squares:
        params.imatrix = _build_imatrix_entries(mean_squares)
    if api.llama_model_quantize(os.fsencode(model), os.fsencode(out), ctypes.byref(params)) != 0:
        raise TaskError(log.find_reason("it cannot be quantised"))
    return {"fallbacks": dict(sorted(log.fallbacks.items()))}


def measure_activations(
    log: LlamaCppLog, *, model: str, out: str, texts: Sequence[str], threads: int
) -> dict[str, Any]:
    """Write an importance matrix to `out`, from the inputs of each weight while the model reads `texts`."""
    observer, token_count = ActivationObserver(), 0
    model_pointer = _load_model(log, model)
    context = _create_context(log, model_pointer, observer, threads)
    for number, text in enumerate(texts, 1):
        tokens = _tokenize_text(model_pointer, text)
        if api.llama_decode(context, _make_batch(tokens)) != 0:
            raise TaskError(log.find_reason("it cannot read a text"))
        api.llama_memory_clear(api.llama_get_memory(context), False)
        token_count += len(tokens)
        log.report_count(number)
    if not observer.squares:
        raise TaskError("this version of llama.cpp does not show the inputs of its weights")
    if not all(np.isfinite(squares).all() for squares in observer.squares.values()):
        raise TaskError("it computes numbers that are infinite or NaN")
    write_importance_matrix(Path(out), ActivationSums(observer.squares, observer.counts, len(texts)))
    return {"tokens": token_count, "weights": len(observer.squares)}


class GgmlTensor(ctypes.Structure):
    """The beginning of ggml_tensor in ggml.h, up to its name. In another layout no name would be a weight's name."""


GgmlTensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GgmlTensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


class ActivationObserver:
    """Watches every step of the model's computation and sums the squares of the inputs of the layers' weights.

    It ignores the output weight, as llama.cpp's own tools do.
    """

    def __init__(self) -> None:
        self.squares: dict[str, Array] = {}
        self.counts: Counter[str] = Counter()
        self.callback = api.ggml_backend_sched_eval_callback(self._observe_step)

    def _observe_step(self, address: int, ask: bool, _: object) -> bool:
        """Return whether a step is of interest. llama.cpp calls with `ask` before the step, and without it afterwards."""
        step = GgmlTensor.from_address(address)
        if not (step.src[0] and step.src[1]):
            return False
        weight, inputs = step.src[0].contents, step.src[1].contents
        if not _is_layer_multiplication(step, weight, inputs):
            return False
        if not ask:
            name = weight.name.decode()
            numbers = _view_numbers(inputs)
            self.squares[name] = self.squares.get(name, 0.0) + np.square(numbers, dtype=np.float64).sum(axis=(0, 1, 2))
            self.counts[name] += numbers.size // numbers.shape[-1]
        return True


def _is_layer_multiplication(step: GgmlTensor, weight: GgmlTensor, inputs: GgmlTensor) -> bool:
    """Return whether the step multiplies by a layer's weight. Shapes tell it: operation numbers differ by version."""
    fits = weight.ne[0] == inputs.ne[0] and weight.ne[1] == step.ne[0] and weight.ne[2] == weight.ne[3] == 1
    return fits and inputs.type == _F32 and bool(_LAYER_WEIGHT.fullmatch(weight.name))


def _view_numbers(tensor: GgmlTensor) -> Array:
    """Return the tensor's numbers without a copy, columns in the last axis."""
    start = np.ctypeslib.as_array(ctypes.cast(tensor.data, ctypes.POINTER(ctypes.c_float)), shape=(1,))
    return np.lib.stride_tricks.as_strided(start, shape=tensor.ne[::-1], strides=tensor.nb[::-1])


def _load_model(log: LlamaCppLog, model: str) -> Any:
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = False  # weights stay mapped from the file, which makes loading cheap
    model_pointer = api.llama_model_load_from_file(os.fsencode(model), params)
    if not model_pointer:
        raise TaskError(log.find_reason("it cannot be loaded"))
    return model_pointer


def _create_context(log: LlamaCppLog, model_pointer: Any, observer: ActivationObserver, threads: int) -> Any:
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = MAX_TOKENS_PER_TEXT
    params.n_threads = params.n_threads_batch = threads
    params.op_offload = params.offload_kqv = False
    params.no_perf = True
    params.cb_eval = observer.callback
    context = api.llama_init_from_model(model_pointer, params)
    if not context or not api.llama_get_memory(context):
        raise TaskError(log.find_reason("it is not a model that writes text"))
    return context


def _tokenize_text(model_pointer: Any, text: str) -> Any:
    """Return the tokens that a served model reads, at most MAX_TOKENS_PER_TEXT."""
    data = text.encode()
    tokens = (api.llama_token * (len(data) + 8))()  # a token has at least one byte, except those added around a text
    vocabulary = api.llama_model_get_vocab(model_pointer)
    token_count = api.llama_tokenize(vocabulary, data, len(data), tokens, len(tokens), True, True)
    if token_count < 1:
        raise TaskError("its tokenizer finds no token in a text")
    token_count = min(token_count, MAX_TOKENS_PER_TEXT)
    return (api.llama_token * token_count)(*tokens[:token_count])


def _make_batch(tokens: Any) -> Any:
    """Return one sequence that asks for every token's logits. The last layer skips tokens without logits."""
    batch = api.llama_batch_get_one(tokens, len(tokens))
    batch.logits = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
    return batch


def _build_imatrix_entries(mean_squares: Mapping[str, Array]) -> Any:
    """Return llama.cpp's array of pointers to `mean_squares`. It ends with an entry without a name."""
    entries = (api.llama_model_imatrix_data * (len(mean_squares) + 1))()
    for entry, (name, values) in zip(entries, mean_squares.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


TASKS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "check": check_model,
    "measure": measure_activations,
    "quantise": quantise_model,
}


def main() -> None:
    """Do the task on standard input and end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the worker
    send_message = _open_message_channel()
    task = json.loads(sys.stdin.buffer.readline())
    Thread(target=_exit_with_parent, daemon=True).start()
    api.llama_backend_init()
    try:
        log = LlamaCppLog(lambda count: send_message({"progress": count}))
        send_message({"done": TASKS[task.pop("task")](log, **task)})
    except (TaskError, OSError, ValueError) as error:
        send_message({"error": str(error)})


def _exit_with_parent() -> None:
    # Reads the descriptor, because Python needs the lock of sys.stdin when it exits.
    while os.read(0, 1):
        pass
    os._exit(1)


def _open_message_channel() -> Callable[[dict[str, Any]], None]:
    """Return a function that sends a message on standard output. Anything else that is printed goes to standard error."""
    stream = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def send_message(message: dict[str, Any]) -> None:
        stream.write(json.dumps(message).encode() + b"\n")

    return send_message


if __name__ == "__main__":
    main()
