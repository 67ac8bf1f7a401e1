"""A LoRA adapter as PEFT saves it, read without PEFT.

An adapter adds `scale * B @ A` to a weight of shape (out, in), with A of shape (rank, in) and B of shape (out, rank). PEFT
keeps `lora_alpha` and r, from which the scale follows, in adapter_config.json. Here the scale goes into B.
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

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_TENSOR = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
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
_UNSUPPORTED = (
    "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "trainable_token_indices",
    "lora_bias", "use_qalora", "use_bdlora", "kasa_config", "arrow_config", "monteclora_config", "layer_replication",
    "target_parameters", "alora_invocation_tokens",
)  # fmt: skip
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base as it was; with the others the adapter belongs to a changed base."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Both matrices of one adapted weight, as float32: `a` (rank, in) and `b` (out, rank), which holds the scale."""

    a: Array
    b: Array


@dataclass(frozen=True, slots=True)
class Adapter:
    """What one folder holds. `sha256` is that of its weights' file; `pairs` has GGUF's names, in GGUF's order."""

    name: str
    sha256: str
    rank: int
    pairs: Mapping[str, Pair]


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`. Raises SettingsError where llama.cpp could not express it."""
    rank, scale = _rank_and_scale(read_config(folder), folder)
    data = _weights(folder)
    pairs = {name: Pair(pair.a, pair.b * np.float32(scale)) for name, pair in _pairs(data, folder, rank=rank).items()}
    return Adapter(folder.resolve().name, hashlib.sha256(data).hexdigest(), rank, pairs)


def in_order(weights: Iterable[str]) -> list[str]:
    """GGUF's names by layer and by `_MODULES`."""
    return sorted(weights, key=_order)


def read_config(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says. Raises SettingsError where there is none, or none of a LoRA adapter."""
    path = folder / CONFIG
    try:
        config: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{folder} has no {CONFIG}; name a folder as PEFT saves an adapter") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); save the adapter again") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise SettingsError(f"{path} describes no LoRA adapter; llama.cpp knows no other kind")
    return config


def _rank_and_scale(config: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    for key in _UNSUPPORTED:
        if config.get(key):
            raise SettingsError(f"{folder}: llama.cpp knows no adapter with {key}; train it without, or merge it")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        raise SettingsError(f"{folder}: init_lora_weights changed the base model; train it without, or merge it")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not alpha > 0:
        raise SettingsError(f"{folder}: r is {rank!r} and lora_alpha is {alpha!r}; both must be numbers above 0")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pairs(data: bytes, folder: Path, *, rank: int) -> dict[str, Pair]:
    """The adapted weights as PEFT has them, by their GGUF name and in that order."""
    halves: dict[str, dict[str, Array]] = {}
    for name, tensor in _tensors(data, folder).items():
        weight, half = _gguf_name(name, folder)
        halves.setdefault(weight, {})[half] = tensor
    lone = [name for name, found in halves.items() if len(found) < 2]
    if lone or not halves:
        missing = f"one of lora_A and lora_B of {lone[0]}" if lone else "any LoRA weight"
        raise SettingsError(f"{folder / WEIGHTS} lacks {missing}; save the adapter again")
    pairs = {name: Pair(halves[name]["A"], halves[name]["B"]) for name in in_order(halves)}
    for name, pair in pairs.items():
        if pair.a.shape[:-1] != (rank,) or pair.b.shape[1:] != (rank,):
            shapes = f"lora_A {pair.a.shape} and lora_B {pair.b.shape}"
            raise SettingsError(f"{folder}: {shapes} of {name} are not of rank {rank}; save the adapter again")
    return pairs


def _gguf_name(name: str, folder: Path) -> tuple[str, str]:
    """("blk.3.attn_q.weight", "A") for PEFT's name of a tensor."""
    found = _TENSOR.fullmatch(name)
    if found is None or found[2] not in _MODULES:
        known = ", ".join(_MODULES)
        raise SettingsError(f"{folder}: {name} cannot be exported; adapt only {known}, or merge the adapter")
    return f"blk.{found[1]}.{_MODULES[found[2]]}.weight", found[3]


def _order(weight: str) -> tuple[int, int]:
    _, layer, module, _ = weight.split(".")
    return int(layer), list(_MODULES.values()).index(module)


def _weights(folder: Path) -> bytes:
    try:
        return (folder / WEIGHTS).read_bytes()
    except FileNotFoundError:
        problem = f"{folder} has no {WEIGHTS}; save the adapter as safetensors, the only form that is read"
        raise SettingsError(problem) from None
    except OSError as error:
        raise SettingsError(f"{folder / WEIGHTS} cannot be read ({error.strerror}); save the adapter again") from None


def _tensors(data: bytes, folder: Path) -> dict[str, Array]:
    try:
        deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
        return {name: _float32(tensor) for name, tensor in deserialize(data)}
    except (ValueError, safetensors.SafetensorError) as error:
        raise SettingsError(f"{folder / WEIGHTS} cannot be read ({error}); save the adapter again") from None


def _float32(tensor: Mapping[str, Any]) -> Array:
    kind, data, shape = tensor["dtype"], tensor["data"], tensor["shape"]
    if kind not in _DTYPES:
        raise ValueError(f"numbers of type {kind}")
    return as_float32(np.frombuffer(data, _DTYPES[kind])).reshape(shape)


def as_float32(numbers: Array) -> Array:
    """Numbers of a safetensors file; unsigned ones are bfloat16, which numpy has no name for."""
    if numbers.dtype == np.dtype("<u2"):  # the upper half of a float32
        return (numbers.astype("<u4") << 16).view("<f4")
    return numbers.astype("<f4", copy=False)
