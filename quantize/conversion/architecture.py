"""Read a model's architecture from config.json. Values that llama.cpp would compute differently are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.plugin.files import read_json_object

CONFIG_FILE = "config.json"
ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
"""GGUF's name of each architecture, by its name in transformers."""
_SUPPORTED_VALUES: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
}
"""The values with which llama.cpp computes the architectures above as transformers does."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a decoder. With `tied_embeddings`, one matrix serves as both the input and the output embedding."""

    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens: int
    rope_base: float
    rms_epsilon: float
    tied_embeddings: bool


def read_architecture(folder: Path) -> Architecture:
    """Read config.json of `folder`, in the form of transformers 5 or of an older version. Raises SettingsError."""
    config = read_json_object(folder / CONFIG_FILE, remedy="name a folder as transformers saves a model")
    name = _read_architecture_name(config, folder)
    _check_supported(config, folder)
    hidden, heads = _read_count(config, "hidden_size", folder), _read_count(config, "num_attention_heads", folder)
    # Transformers derives a missing head_dim for Llama. Its Qwen3 has a default of its own, so config.json must have it.
    head_dim = _read_count(config, "head_dim", folder, default=hidden // heads if name == "llama" else None)
    if head_dim % 2:
        raise SettingsError(f"{folder / CONFIG_FILE}: head_dim is {head_dim}; it must be even, as RoPE rotates pairs")
    return Architecture(
        name=name,
        layers=_read_count(config, "num_hidden_layers", folder),
        hidden=hidden,
        feed_forward=_read_count(config, "intermediate_size", folder),
        heads=heads,
        kv_heads=_read_count(config, "num_key_value_heads", folder, default=heads),
        head_dim=head_dim,
        vocabulary=_read_count(config, "vocab_size", folder),
        context_tokens=_read_count(config, "max_position_embeddings", folder),
        rope_base=_read_rope_base(config, folder),
        rms_epsilon=_read_number(config, "rms_norm_eps", folder),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def _read_architecture_name(config: Mapping[str, Any], folder: Path) -> str:
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else architectures
    if not isinstance(name, str) or name not in ARCHITECTURES:
        supported_names = " or ".join(ARCHITECTURES)
        raise SettingsError(
            f"{folder / CONFIG_FILE}: architectures is {name!r}; only {supported_names} can be exported"
        )
    return ARCHITECTURES[name]


def _check_supported(config: Mapping[str, Any], folder: Path) -> None:
    for key, values in _SUPPORTED_VALUES.items():
        if config.get(key, values[0]) not in values:
            raise SettingsError(f"{folder / CONFIG_FILE}: {key} is {config[key]!r}; only {values[0]!r} can be exported")
    for layer_type in config.get("layer_types") or ():
        if layer_type != "full_attention":
            raise SettingsError(
                f"{folder / CONFIG_FILE}: a layer is of type {layer_type!r}; only 'full_attention' can be exported"
            )


def _read_rope_base(config: Mapping[str, Any], folder: Path) -> float:
    """Return the base of RoPE. It is in rope_parameters in transformers 5, and beside rope_scaling in older versions."""
    parameters: dict[str, Any] = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key) or {}
        if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise SettingsError(
                f"{folder / CONFIG_FILE}: {key} is {rope!r}; only a rope_type of 'default' can be exported"
            )
        parameters |= rope
    factor = parameters["partial_rotary_factor"]
    if factor not in (None, 1):
        raise SettingsError(f"{folder / CONFIG_FILE}: partial_rotary_factor is {factor!r}; only 1 can be exported")
    return _read_number(parameters, "rope_theta", folder)


def _read_count(config: Mapping[str, Any], key: str, folder: Path, *, default: int | None = None) -> int:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or value < 1:
        raise SettingsError(f"{folder / CONFIG_FILE}: {key} is {value!r}; it must be a whole number above 0")
    return value


def _read_number(config: Mapping[str, Any], key: str, folder: Path) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise SettingsError(f"{folder / CONFIG_FILE}: {key} is {value!r}; it must be a number above 0")
    return float(value)
