"""A LoRA adapter as PEFT saves it, written as the GGUF adapter file that llama.cpp puts on a model.

An adapter adds `scale * B @ A` to a weight of shape (out, in), with A of shape (rank, in) and B of shape (out, rank). PEFT
keeps `lora_alpha` and r in adapter_config.json; llama.cpp computes scale = alpha / rank from `adapter.lora.alpha` and the
tensors. In a GGUF file of architecture llama the rows of the q and k projections stand in another order than in Hugging
Face's; the rows of their B must follow.

The numbers are Q8_0 by default, and not only for the size: llama.cpp multiplies floats by one kernel where a batch has one
row and by another where it has more, so that what is written for a query would depend on what else is in the batch.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import safetensors

from plugin.errors import SettingsError
from plugin.expansion import PROMPT_VERSION
from plugin.generators.llama_file import PROMPT_VERSION_KEY, check_gguf, file_digest

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

BASE_NAME_KEY = "querylift.base.name"
BASE_SHA256_KEY = "querylift.base.sha256"
ARCHITECTURES = ("llama", "qwen3")
NUMBER_TYPES = {
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "f16": gguf.GGMLQuantizationType.F16,
    "f32": gguf.GGMLQuantizationType.F32,
}
_BLOCK = 32
"""Numbers of one row that Q8_0 keeps together."""
_MOST = float(np.finfo(np.float16).max)

_WEIGHTS = "adapter_model.safetensors"
_TENSOR = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
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
class Base:
    """The model that an adapter goes on. `shapes` holds (out, in) of each weight by its GGUF name."""

    name: str
    sha256: str
    architecture: str
    heads: int
    kv_heads: int
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Both matrices of one adapted weight, as float32: `a` (rank, in) and `b` (out, rank)."""

    a: Array
    b: Array


def read_base(path: Path) -> Base:
    """What the export needs to know of a GGUF model. Raises SettingsError."""
    check_gguf(path)
    try:
        reader = gguf.GGUFReader(path)
        architecture = str(_field(reader, "general.architecture"))
        heads = int(_field(reader, f"{architecture}.attention.head_count"))
        kv_heads = int(_field(reader, f"{architecture}.attention.head_count_kv", heads))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SettingsError(f"the model {path} cannot be read ({error}); give a complete GGUF file") from error
    if architecture not in ARCHITECTURES:
        known = " or ".join(ARCHITECTURES)
        raise SettingsError(f"the model {path} is of architecture {architecture}; name one of {known}")
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    return Base(path.name, file_digest(path), architecture, heads, kv_heads, shapes)


def export_adapter(folder: Path, out: Path, *, base: Base, number_type: str = "q8_0") -> int:
    """Write the adapter in `folder` to `out`, whole or not at all; how many weights it adapts. Raises SettingsError."""
    config = _config(folder)
    rank, alpha = _rank_and_alpha(config, folder)
    pairs = {name: _fitting(name, pair, base) for name, pair in _pairs(folder, rank=rank).items()}
    if number_type == "q8_0":
        more = -rank % _BLOCK
        pairs, alpha = {name: _widened(pair, more) for name, pair in pairs.items()}, alpha * (rank + more) / rank
    with _replacing(out) as part:
        _write(part, pairs, base=base, alpha=alpha, number_type=number_type)
    return len(pairs)


def gguf_rows(b: Array, *, heads: int) -> Array:
    """The rows of a q or k projection in the order of a GGUF file of architecture llama.

    Hugging Face turns row i of a head with row i + half, llama.cpp with its neighbour.
    """
    return b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


# --- what PEFT saved


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{folder} has no adapter_config.json; name a folder as PEFT saves an adapter") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); save the adapter again") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise SettingsError(f"{path} describes no LoRA adapter; llama.cpp knows no other kind")
    return config


def _rank_and_alpha(config: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    """The rank, and the alpha from which llama.cpp, which divides it by the rank, gets PEFT's scale."""
    for key in _UNSUPPORTED:
        if config.get(key):
            raise SettingsError(f"{folder}: llama.cpp knows no adapter with {key}; train it without, or merge it")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        raise SettingsError(f"{folder}: init_lora_weights changed the base model; train it without, or merge it")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not alpha > 0:
        raise SettingsError(f"{folder}: r is {rank!r} and lora_alpha is {alpha!r}; both must be numbers above 0")
    return rank, float(alpha) * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def _pairs(folder: Path, *, rank: int) -> dict[str, Pair]:
    """The adapted weights by their GGUF name, in the order of layers and of `_MODULES`."""
    halves: dict[str, dict[str, Array]] = {}
    for name, tensor in _tensors(folder).items():
        weight, half = _gguf_name(name, folder)
        halves.setdefault(weight, {})[half] = tensor
    lone = [name for name, found in halves.items() if len(found) < 2]
    if lone or not halves:
        missing = f"one of lora_A and lora_B of {lone[0]}" if lone else "any LoRA weight"
        raise SettingsError(f"{folder / _WEIGHTS} lacks {missing}; save the adapter again")
    pairs = {name: Pair(halves[name]["A"], halves[name]["B"]) for name in sorted(halves, key=_order)}
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


def _tensors(folder: Path) -> dict[str, Array]:
    path = folder / _WEIGHTS
    try:
        deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
        return {name: _float32(tensor) for name, tensor in deserialize(path.read_bytes())}
    except FileNotFoundError:
        problem = f"{folder} has no {_WEIGHTS}; save the adapter as safetensors, the only form that is read"
        raise SettingsError(problem) from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); save the adapter again") from None


def _float32(tensor: Mapping[str, Any]) -> Array:
    kind, data, shape = tensor["dtype"], tensor["data"], tensor["shape"]
    if kind == "BF16":  # the upper half of a float32, which numpy has no name for
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    if kind not in _DTYPES:
        raise ValueError(f"numbers of type {kind}")
    return np.frombuffer(data, _DTYPES[kind]).astype("<f4").reshape(shape)


# --- what llama.cpp reads


def _fitting(name: str, pair: Pair, base: Base) -> Pair:
    """The pair with its rows in GGUF's order. Raises SettingsError where the base has no such weight of that shape."""
    shape = base.shapes.get(name)
    if shape != (pair.b.shape[0], pair.a.shape[1]):
        found = f"is {shape[0]} x {shape[1]}" if shape else "does not exist"
        wanted = f"{pair.b.shape[0]} x {pair.a.shape[1]}"
        raise SettingsError(f"{name} {found} in {base.name} and {wanted} in the adapter; name the adapter's own base")
    heads = {"attn_q": base.heads, "attn_k": base.kv_heads}.get(name.split(".")[2])
    if heads is None or base.architecture != "llama":
        return pair
    return Pair(pair.a, gguf_rows(pair.b, heads=heads))


def _widened(pair: Pair, more: int) -> Pair:
    """The pair with `more` ranks of zeros, which add nothing but fill the last block of each row of B."""
    return Pair(np.pad(pair.a, ((0, more), (0, 0))), np.pad(pair.b, ((0, 0), (0, more))))


def _write(path: Path, pairs: Mapping[str, Pair], *, base: Base, alpha: float, number_type: str) -> None:
    writer = gguf.GGUFWriter(path, base.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_string(PROMPT_VERSION_KEY, PROMPT_VERSION)
    writer.add_string(BASE_NAME_KEY, base.name)
    writer.add_string(BASE_SHA256_KEY, base.sha256)
    for name, pair in pairs.items():
        kind = NUMBER_TYPES[number_type]
        writer.add_tensor(f"{name}.lora_a", _numbers(name, pair.a, number_type), raw_dtype=kind)
        writer.add_tensor(f"{name}.lora_b", _numbers(name, pair.b, number_type), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _numbers(name: str, values: Array, number_type: str) -> Array:
    if not (np.abs(values) <= _MOST).all():
        raise SettingsError(f"{name} has infinite or very large numbers; the training has failed, so train again")
    if number_type == "q8_0" and values.shape[1] % _BLOCK:
        raise SettingsError(f"{name} has rows of {values.shape[1]} numbers, which q8_0 cannot hold; use f16")
    return np.ascontiguousarray(gguf.quants.quantize(values, NUMBER_TYPES[number_type]))


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A path whose file takes the place of `target` when the block ends well, and goes otherwise."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield part
        os.replace(part, target)
    except OSError as error:
        raise SettingsError(f"{target} cannot be written: {error.strerror}; name another place") from None
    finally:
        part.unlink(missing_ok=True)


def _field(reader: gguf.GGUFReader, key: str, default: object = None) -> Any:
    field = reader.get_field(key)
    value = field.contents() if field else default
    if value is None:
        raise ValueError(f"it has no {key}")
    return value
