"""A GGUF model through llama.cpp's C interface. It reads tokens of several sequences at once and predicts the next ones.

Only the worker process imports this module, because it loads llama.cpp and numpy. The class `llama_cpp.Llama` does not
batch sequences, and does not let its callers set the parameters below.
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
from querylift.plugin.generators.llama.batching import BatchToken
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_MAX_ERRORS = 8
_FUNCTION_NAMES = re.compile(r"^(?:\w+: |error loading model: |failed to apply lora adapter: )+")


class ModelLoadError(Exception):
    """llama.cpp cannot use the file. The message is llama.cpp's reason."""


class AdapterLoadError(ModelLoadError):
    """The model can be used, but not with this adapter."""


@dataclass(frozen=True, slots=True)
class ContextSize:
    """The number of sequences, the tokens that each one holds, and the tokens that one pass reads."""

    sequences: int
    sequence_tokens: int
    step_tokens: int


def has_amx_kernels(system_info: bytes) -> bool:
    """Whether llama.cpp says in its list of CPU features that it was compiled for Intel's matrix unit (AMX)."""
    return re.search(rb"\bAMX_INT8 = 1\b", system_info) is not None


class LlamaModel:
    """A loaded model with its context, and with a LoRA adapter when one is given. Not thread-safe.

    Raises ModelLoadError. llama.cpp calls `on_progress` between the operations of a pass.
    """

    def __init__(
        self,
        path: Path,
        size: ContextSize,
        *,
        threads: int,
        gpu_layers: int,
        on_progress: Callable[[], None],
        adapter: Path | None = None,
    ) -> None:
        self._log, self._errors = _capture_errors()
        api.llama_backend_init()
        self._model = self._load_model(path, gpu_layers)
        self._has_adapter = adapter is not None
        # The adapter is loaded before the context, because the context counts the operations that the adapter adds.
        lora = self._load_adapter(adapter) if adapter else None
        self._vocab = api.llama_model_get_vocab(self._model)
        self._vocab_size = api.llama_vocab_n_tokens(self._vocab)
        self._abort_callback = _make_abort_callback(on_progress)
        self._context = self._create_context(size, threads)
        if lora:
            self._apply_adapter(lora)
        self._memory = api.llama_get_memory(self._context) or self._raise_load_error(
            "it is not a model that writes text"
        )
        self._batch = api.llama_batch_init(size.step_tokens, 0, 1)
        self._token_buffer = (api.llama_token * size.sequence_tokens)()
        self._byte_buffer = ctypes.create_string_buffer(1024)

    def _load_model(self, path: Path, gpu_layers: int) -> Any:
        params = api.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        # Extra buffers repack the weights for the CPU, which makes Q4_0 twice as fast. A llama.cpp that was compiled with
        # AMX then crashes on quantised weights as soon as a batch has two rows.
        params.use_extra_bufts = not has_amx_kernels(api.llama_print_system_info())
        model = api.llama_model_load_from_file(bytes(path), params) or self._raise_load_error("it cannot be loaded")
        if reason := _explain_prompt_mismatch(api.llama_model_meta_val_str, model):
            raise ModelLoadError(reason)
        return model

    def _load_adapter(self, path: Path) -> Any:
        lora = api.llama_adapter_lora_init(self._model, bytes(path))
        if not lora:
            raise AdapterLoadError(self._find_error_reason("it cannot be loaded"))
        if reason := _explain_prompt_mismatch(api.llama_adapter_meta_val_str, lora):
            raise AdapterLoadError(reason)
        return lora

    def _apply_adapter(self, lora: Any) -> None:
        adapters, scales = (api.llama_adapter_lora_p_ctypes * 1)(lora), (ctypes.c_float * 1)(1.0)
        if api.llama_set_adapters_lora(self._context, adapters, 1, scales) != 0:
            raise AdapterLoadError(self._find_error_reason("it cannot be put on the model"))

    def _create_context(self, size: ContextSize, threads: int) -> Any:
        params = api.llama_context_default_params()
        params.n_ctx = size.sequences * size.sequence_tokens
        params.n_batch = params.n_ubatch = size.step_tokens
        params.n_seq_max = size.sequences
        params.n_threads = params.n_threads_batch = threads
        # A buffer for each sequence, and flash attention: a query's text then does not depend on the other sequences in
        # the batch (true of Q4_0, Q4_1 and Q8_0, not of Q4_K_M). With one buffer for all, 20 of 30 texts changed.
        params.kv_unified = False
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        params.abort_callback = self._abort_callback
        return api.llama_init_from_model(self._model, params) or self._raise_load_error("no context can be made for it")

    def _raise_load_error(self, fallback: str) -> NoReturn:
        raise ModelLoadError(self._find_error_reason(fallback))

    def _find_error_reason(self, fallback: str) -> str:
        """Return the first error that llama.cpp logged, which is the cause, without function names. Else `fallback`."""
        return _FUNCTION_NAMES.sub("", self._errors[0]) if self._errors else fallback

    @property
    def own_template(self) -> str | None:
        """The chat template of an untrained model. None for a student: it has an adapter, or its file names our prompt."""
        if self._has_adapter or _read_prompt_version(api.llama_model_meta_val_str, self._model):
            return None
        template = api.llama_model_chat_template(self._model, None)
        return template.decode(errors="replace") if template else None

    @property
    def can_copy_prefix(self) -> bool:
        """Whether one sequence can begin with part of another. A recurrent or hybrid model keeps only a running state."""
        return not (api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model))

    def tokenize(self, text: str) -> list[int] | None:
        """Return the tokens of `text`, special tokens included, or None when a sequence cannot hold them."""
        data = text.encode()
        buffer = self._token_buffer
        count = api.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), True, True)
        return None if count < 0 else buffer[:count]

    def get_token_bytes(self, token: int) -> bytes:
        """Return the bytes that `token` stands for, which may be part of a character."""
        size = api.llama_token_to_piece(self._vocab, token, self._byte_buffer, len(self._byte_buffer), 0, True)
        return self._byte_buffer.raw[: max(size, 0)]

    def is_end_token(self, token: int) -> bool:
        """Whether `token` ends a text. Every control token does, because no passage contains one."""
        return bool(api.llama_vocab_is_eog(self._vocab, token) or api.llama_vocab_is_control(self._vocab, token))

    def copy_prefix(self, source: int, target: int, *, count: int) -> None:
        """Let the empty sequence `target` begin with the first `count` tokens of `source`."""
        # llama.cpp copies only whole sequences between two buffers, so the rest is removed afterwards.
        api.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        api.llama_memory_seq_rm(self._memory, target, count, -1)

    def clear_sequence(self, sequence: int) -> None:
        """Remove all tokens of `sequence`."""
        api.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def decode_batch(self, batch: Sequence[BatchToken]) -> list[int]:
        """Run one pass. Return the most likely next token for each token that needs one, in order. Raises RuntimeError."""
        self._fill_batch(batch)
        status = api.llama_decode(self._context, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode answered {status} to a batch of {len(batch)} tokens")
        return [self._find_likeliest_token(index) for index, entry in enumerate(batch) if entry.needs_next]

    def _fill_batch(self, batch: Sequence[BatchToken]) -> None:
        buffer = self._batch
        buffer.n_tokens = len(batch)
        for index, entry in enumerate(batch):
            buffer.token[index] = entry.token
            buffer.pos[index] = entry.position
            buffer.n_seq_id[index] = 1
            buffer.seq_id[index][0] = entry.sequence
            buffer.logits[index] = entry.needs_next

    def _find_likeliest_token(self, index: int) -> int:
        logits = api.llama_get_logits_ith(self._context, index)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._vocab_size,))))


def _explain_prompt_mismatch(read_metadata: Callable[..., int], handle: Any) -> str:
    """Return why a file cannot be used with our prompt; "" when it can, or when its metadata names no prompt."""
    version = _read_prompt_version(read_metadata, handle)
    if version in ("", PROMPT_VERSION):
        return ""
    return f"it was trained for the prompt {version}, and this version serves {PROMPT_VERSION}"


def _read_prompt_version(read_metadata: Callable[..., int], handle: Any) -> str:
    """Return the prompt that a file's metadata names; "" when it names none."""
    text = ctypes.create_string_buffer(256)
    size = read_metadata(handle, PROMPT_VERSION_KEY.encode(), text, len(text))
    return "" if size < 0 else text.value.decode(errors="replace")


def _make_abort_callback(on_progress: Callable[[], None]) -> Any:
    """Return a callback that never stops llama.cpp, and reports progress whenever it is called."""

    def report_progress(_: object) -> bool:
        on_progress()
        return False

    return api.ggml_abort_callback(report_progress)


def _capture_errors() -> tuple[Any, list[str]]:
    """Keep llama.cpp's log out of the output. Return the callback, which must outlive llama.cpp, and its first errors."""
    errors: list[str] = []

    def keep_error(level: int, text: bytes, _: object) -> None:
        if level == _ERROR_LEVEL and len(errors) < _MAX_ERRORS:
            errors.append(text.decode(errors="replace").strip())

    callback = api.llama_log_callback(keep_error)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    return callback, errors
