"""A GGUF model behind llama.cpp's C interface: tokens in, most likely next tokens out, for several sequences at once.

Imported in the worker process only: it loads llama.cpp and numpy. `llama_cpp.Llama` is not used, because it neither
batches sequences nor lets the model parameters below be set.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from llama_cpp import llama_cpp as api

from querylift.plugin.expansion import PROMPT_VERSION
from querylift.plugin.generators.llama.batching import Row
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY, has_amx

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_MOST_ERRORS = 8
_FUNCTION_NAMES = re.compile(r"^(?:\w+: |error loading model: |failed to apply lora adapter: )+")


class LoadError(Exception):
    """llama.cpp cannot use the file; the message is its own reason."""


class AdapterError(LoadError):
    """The adapter cannot be used with the model, which itself can be."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How many sequences there are, how many tokens each holds, and how many all of them read in one step."""

    sequences: int
    sequence_tokens: int
    step_tokens: int


class LlamaModel:
    """A loaded model, with a LoRA adapter on top where one is given, and its context. Not thread-safe. Raises LoadError."""

    def __init__(
        self,
        path: Path,
        shape: Shape,
        *,
        threads: int,
        gpu_layers: int,
        on_progress: Callable[[], None],
        adapter: Path | None = None,
    ) -> None:
        self._log, self._errors = _catch_log()
        api.llama_backend_init()
        self._model = self._load(path, gpu_layers)
        # Before the context, which counts the operations that the adapter adds.
        lora = self._load_adapter(adapter) if adapter else None
        self._vocab = api.llama_model_get_vocab(self._model)
        self._vocab_size = api.llama_vocab_n_tokens(self._vocab)
        self._abort = _progress_callback(on_progress)
        self._context = self._open(shape, threads)
        if lora:
            self._put_on(lora)
        self._memory = api.llama_get_memory(self._context) or self._refuse("it is no model that writes text")
        self._batch = api.llama_batch_init(shape.step_tokens, 0, 1)
        self._tokens = (api.llama_token * shape.sequence_tokens)()
        self._piece = ctypes.create_string_buffer(1024)

    def _load(self, path: Path, gpu_layers: int) -> Any:
        params = api.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        # Weights laid out anew for the CPU: twice as fast for Q4_0, but on a CPU with AMX llama.cpp then crashes on
        # quantised weights as soon as a batch has two rows.
        params.use_extra_bufts = not has_amx()
        model = api.llama_model_load_from_file(bytes(path), params) or self._refuse("it cannot be loaded")
        if reason := _unfit(api.llama_model_meta_val_str, model):
            raise LoadError(reason)
        return model

    def _load_adapter(self, path: Path) -> Any:
        lora = api.llama_adapter_lora_init(self._model, bytes(path))
        if not lora:
            raise AdapterError(self._reason("it cannot be loaded"))
        if reason := _unfit(api.llama_adapter_meta_val_str, lora):
            raise AdapterError(reason)
        return lora

    def _put_on(self, lora: Any) -> None:
        adapters, scales = (api.llama_adapter_lora_p_ctypes * 1)(lora), (ctypes.c_float * 1)(1.0)
        if api.llama_set_adapters_lora(self._context, adapters, 1, scales) != 0:
            raise AdapterError(self._reason("it cannot be put on the model"))

    def _open(self, shape: Shape, threads: int) -> Any:
        params = api.llama_context_default_params()
        params.n_ctx = shape.sequences * shape.sequence_tokens
        params.n_batch = params.n_ubatch = shape.step_tokens
        params.n_seq_max = shape.sequences
        params.n_threads = params.n_threads_batch = threads
        # A buffer for each sequence and flash attention: what is written for a query then does not depend on what else
        # is in the batch (Q4_0, Q4_1, Q8_0; not Q4_K_M). With one buffer for all, 20 of 30 texts changed.
        params.kv_unified = False
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        params.abort_callback = self._abort
        return api.llama_init_from_model(self._model, params) or self._refuse("no context can be made for it")

    def _refuse(self, fallback: str) -> NoReturn:
        raise LoadError(self._reason(fallback))

    def _reason(self, fallback: str) -> str:
        # The first error is the cause; those after it say that the caller failed in turn.
        return _FUNCTION_NAMES.sub("", self._errors[0]) if self._errors else fallback

    @property
    def shares_prefixes(self) -> bool:
        """Whether part of one sequence can be given to another: not where the state is a running summary."""
        return not (api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model))

    def tokenize(self, text: str) -> list[int] | None:
        """Tokens of `text`, special tokens included; None where they are more than a sequence holds."""
        data = text.encode()
        count = api.llama_tokenize(self._vocab, data, len(data), self._tokens, len(self._tokens), True, True)
        return None if count < 0 else self._tokens[:count]

    def piece(self, token: int) -> bytes:
        """The bytes that `token` stands for, which may be part of a character."""
        size = api.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, True)
        return self._piece.raw[: max(size, 0)]

    def ends(self, token: int) -> bool:
        """Whether `token` ends a text: an end marker or another control token, which no passage contains."""
        return bool(api.llama_vocab_is_eog(self._vocab, token) or api.llama_vocab_is_control(self._vocab, token))

    def share(self, source: int, target: int, *, count: int) -> None:
        """Begin the empty sequence `target` with the first `count` tokens of `source`."""
        # Between the buffers of two sequences only a whole sequence can be copied.
        api.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        api.llama_memory_seq_rm(self._memory, target, count, -1)

    def forget(self, sequence: int) -> None:
        """Free all that `sequence` holds."""
        api.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def decode(self, rows: Sequence[Row]) -> list[int]:
        """Run one step; the most likely next token of each wanted row, in order. Raises RuntimeError."""
        self._fill(rows)
        status = api.llama_decode(self._context, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode answered {status} to {len(rows)} rows")
        return [self._best(i) for i, row in enumerate(rows) if row.wanted]

    def _fill(self, rows: Sequence[Row]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, row in enumerate(rows):
            batch.token[i] = row.token
            batch.pos[i] = row.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row.sequence
            batch.logits[i] = row.wanted

    def _best(self, index: int) -> int:
        logits = api.llama_get_logits_ith(self._context, index)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._vocab_size,))))


def _unfit(value_of: Callable[..., int], loaded: Any) -> str:
    """Why a file, by what its metadata says, cannot be asked with our prompt; empty where it can, or says nothing."""
    text = ctypes.create_string_buffer(256)
    size = value_of(loaded, PROMPT_VERSION_KEY.encode(), text, len(text))
    version = PROMPT_VERSION if size < 0 else text.value.decode(errors="replace")
    if version == PROMPT_VERSION:
        return ""
    return f"it was trained for the prompt {version}, and this version serves {PROMPT_VERSION}"


def _progress_callback(on_progress: Callable[[], None]) -> Any:
    """llama.cpp asks between any two operations whether to stop: no, but it shows that the step moves."""

    def tick(_: object) -> bool:
        on_progress()
        return False

    return api.ggml_abort_callback(tick)


def _catch_log() -> tuple[Any, list[str]]:
    """Silence llama.cpp; the callback, which must outlive it, and the errors that it logs, a few at most."""
    errors: list[str] = []

    def keep(level: int, text: bytes, _: object) -> None:
        if level == _ERROR_LEVEL and len(errors) < _MOST_ERRORS:
            errors.append(text.decode(errors="replace").strip())

    callback = api.llama_log_callback(keep)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    return callback, errors
