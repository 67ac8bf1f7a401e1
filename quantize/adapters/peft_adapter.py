"""Read a LoRA adapter as PEFT saves it, without PEFT.

An adapter adds `scale * B @ A` to a weight of shape (out, in), with A of shape (rank, in) and B of shape (out, rank).
PEFT stores `lora_alpha` and `r` in adapter_config.json, from which the scale follows. Here B already includes the scale.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors

from querylift.plugin.errors import SettingsError

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_TENSOR_NAME = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
_DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_UNSUPPORTED_KEYS = (
    "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "trainable_token_indices",
    "lora_bias", "use_qalora", "use_bdlora", "kasa_config", "arrow_config", "monteclora_config", "layer_replication",
    "target_parameters", "alora_invocation_tokens",
)  # fmt: skip
_SUPPORTED_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base unchanged. With any other, the adapter belongs to a changed base."""


@dataclass(frozen=True, slots=True)
class LoraMatrices:
    """The two float32 matrices of one adapted weight: `a` (rank, in) and `b` (out, rank). `b` includes the scale."""

    a: Array
    b: Array


@dataclass(frozen=True, slots=True)
class Adapter:
    """The adapter in one folder. `sha256` is the digest of its weights file; `matrices` has GGUF's names in GGUF's order."""

    name: str
    sha256: str
    rank: int
    matrices: Mapping[str, LoraMatrices]


def read_adapter(folder: Path) -> Adapter:
    """Read the adapter in `folder`. Raises SettingsError when llama.cpp does not support it."""
    rank, scale = _read_rank_and_scale(read_config(folder), folder)
    data = _read_weights_file(folder)
    scaled_matrices = {
        name: LoraMatrices(matrices.a, matrices.b * np.float32(scale))
        for name, matrices in _read_matrices(data, folder, rank=rank).items()
    }
    return Adapter(folder.resolve().name, hashlib.sha256(data).hexdigest(), rank, scaled_matrices)


def sort_weight_names(weights: Iterable[str]) -> list[str]:
    """Sort GGUF's names of weights by layer, and within a layer by `_MODULES`."""
    return sorted(weights, key=_get_sort_key)


def read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json. Raises SettingsError when it is missing or does not describe a LoRA adapter."""
    path = folder / CONFIG_FILE
    try:
        config: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{folder} has no {CONFIG_FILE}; name a folder as PEFT saves an adapter") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); save the adapter again") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise SettingsError(f"{path} does not describe a LoRA adapter; llama.cpp supports no other kind")
    return config


def convert_to_float32(numbers: Array) -> Array:
    """Convert numbers of a safetensors file to float32. Unsigned ones are bfloat16, a type that numpy lacks."""
    if numbers.dtype == np.dtype("<u2"):  # bfloat16 is the upper half of a float32
        return (numbers.astype("<u4") << 16).view("<f4")
    return numbers.astype("<f4", copy=False)


def _read_rank_and_scale(config: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    for key in _UNSUPPORTED_KEYS:
        if config.get(key):
            raise SettingsError(
                f"{folder}: llama.cpp supports no adapter with {key}; train without it, or merge the adapter"
            )
    if config.get("init_lora_weights") not in _SUPPORTED_INITIALISATIONS:
        raise SettingsError(
            f"{folder}: init_lora_weights changed the base model; train without it, or merge the adapter"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not alpha > 0:
        raise SettingsError(f"{folder}: r is {rank!r} and lora_alpha is {alpha!r}; both must be numbers above 0")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_matrices(data: bytes, folder: Path, *, rank: int) -> dict[str, LoraMatrices]:
    """Return the matrices without the scale, by the GGUF name of their weight and in that order."""
    halves: dict[str, dict[str, Array]] = {}
    for name, tensor in _read_tensors(data, folder).items():
        weight_name, half = _parse_tensor_name(name, folder)
        halves.setdefault(weight_name, {})[half] = tensor
    incomplete_names = [name for name, tensors in halves.items() if len(tensors) < 2]
    if incomplete_names or not halves:
        missing = f"one of lora_A and lora_B of {incomplete_names[0]}" if incomplete_names else "any LoRA weight"
        raise SettingsError(f"{folder / WEIGHTS_FILE} lacks {missing}; save the adapter again")
    matrices_by_name = {name: LoraMatrices(halves[name]["A"], halves[name]["B"]) for name in sort_weight_names(halves)}
    for name, matrices in matrices_by_name.items():
        if matrices.a.shape[:-1] != (rank,) or matrices.b.shape[1:] != (rank,):
            shapes = f"lora_A {matrices.a.shape} and lora_B {matrices.b.shape}"
            raise SettingsError(f"{folder}: {shapes} of {name} are not of rank {rank}; save the adapter again")
    return matrices_by_name


def _parse_tensor_name(name: str, folder: Path) -> tuple[str, str]:
    """Return ("blk.3.attn_q.weight", "A") for PEFT's name of a tensor."""
    match = _TENSOR_NAME.fullmatch(name)
    if match is None or match[2] not in _MODULES:
        supported_modules = ", ".join(_MODULES)
        raise SettingsError(
            f"{folder}: {name} cannot be exported; adapt only {supported_modules}, or merge the adapter"
        )
    return f"blk.{match[1]}.{_MODULES[match[2]]}.weight", match[3]


def _get_sort_key(weight_name: str) -> tuple[int, int]:
    _, layer, module, _ = weight_name.split(".")
    return int(layer), list(_MODULES.values()).index(module)


def _read_weights_file(folder: Path) -> bytes:
    try:
        return (folder / WEIGHTS_FILE).read_bytes()
    except FileNotFoundError:
        problem = f"{folder} has no {WEIGHTS_FILE}; save the adapter as safetensors, the only format that is read"
        raise SettingsError(problem) from None
    except OSError as error:
        raise SettingsError(
            f"{folder / WEIGHTS_FILE} cannot be read ({error.strerror}); save the adapter again"
        ) from None


def _read_tensors(data: bytes, folder: Path) -> dict[str, Array]:
    try:
        deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
        return {name: _decode_tensor(tensor) for name, tensor in deserialize(data)}
    except (ValueError, safetensors.SafetensorError) as error:
        raise SettingsError(f"{folder / WEIGHTS_FILE} cannot be read ({error}); save the adapter again") from None


def _decode_tensor(tensor: Mapping[str, Any]) -> Array:
    dtype, data, shape = tensor["dtype"], tensor["data"], tensor["shape"]
    if dtype not in _DTYPES:
        raise ValueError(f"numbers of type {dtype}")
    return convert_to_float32(np.frombuffer(data, _DTYPES[dtype])).reshape(shape)
