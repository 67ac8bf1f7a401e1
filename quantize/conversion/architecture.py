"""What config.json says of a model, as far as llama.cpp computes it; anything else is refused rather than written wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querylift.plugin.errors import SettingsError
from querylift.quantize.files import read_json

CONFIG = "config.json"
ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
"""GGUF's name by that of transformers."""
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
}
"""The values with which the architectures above are what llama.cpp knows by their name."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a decoder. `tied`: it writes words with the weights that it reads them with."""

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
    tied: bool


def read_architecture(folder: Path) -> Architecture:
    """What config.json of `folder` describes, in the form of transformers 5 or an older one. Raises SettingsError."""
    config = read_json(folder / CONFIG, remedy="name a folder as transformers saves a model")
    name = _name(config, folder)
    _check_plain(config, folder)
    hidden, heads = _count(config, "hidden_size", folder), _count(config, "num_attention_heads", folder)
    # Where transformers' Llama has a default; its Qwen3 has a size of its own.
    head_dim = _count(config, "head_dim", folder, default=hidden // heads if name == "llama" else None)
    if head_dim % 2:
        raise SettingsError(
            f"{folder / CONFIG}: head_dim is {head_dim}; the rotary embedding turns pairs, so it must be even"
        )
    return Architecture(
        name=name,
        layers=_count(config, "num_hidden_layers", folder),
        hidden=hidden,
        feed_forward=_count(config, "intermediate_size", folder),
        heads=heads,
        kv_heads=_count(config, "num_key_value_heads", folder, default=heads),
        head_dim=head_dim,
        vocabulary=_count(config, "vocab_size", folder),
        context_tokens=_count(config, "max_position_embeddings", folder),
        rope_base=_rope_base(config, folder),
        rms_epsilon=_number(config, "rms_norm_eps", folder),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _name(config: Mapping[str, Any], folder: Path) -> str:
    named = config.get("architectures")
    found = named[0] if isinstance(named, list) and len(named) == 1 else named
    if not isinstance(found, str) or found not in ARCHITECTURES:
        known = " or ".join(ARCHITECTURES)
        raise SettingsError(f"{folder / CONFIG}: architectures is {found!r}; only {known} can be exported")
    return ARCHITECTURES[found]


def _check_plain(config: Mapping[str, Any], folder: Path) -> None:
    for key, plain in _PLAIN.items():
        if config.get(key, plain[0]) not in plain:
            raise SettingsError(f"{folder / CONFIG}: {key} is {config[key]!r}; only {plain[0]!r} can be exported")
    for kind in config.get("layer_types") or ():
        if kind != "full_attention":
            raise SettingsError(
                f"{folder / CONFIG}: a layer is of type {kind!r}; only 'full_attention' can be exported"
            )


def _rope_base(config: Mapping[str, Any], folder: Path) -> float:
    """The base of the rotary embedding: transformers 5 keeps it in rope_parameters, older ones beside rope_scaling."""
    said: dict[str, Any] = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key) or {}
        if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise SettingsError(f"{folder / CONFIG}: {key} is {rope!r}; only a rope_type of 'default' can be exported")
        said |= rope
    if said["partial_rotary_factor"] not in (None, 1):
        part = said["partial_rotary_factor"]
        raise SettingsError(f"{folder / CONFIG}: partial_rotary_factor is {part!r}; only 1 can be exported")
    return _number(said, "rope_theta", folder)


def _count(config: Mapping[str, Any], key: str, folder: Path, *, default: int | None = None) -> int:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or value < 1:
        raise SettingsError(f"{folder / CONFIG}: {key} is {value!r}; it must be a whole number above 0")
    return value


def _number(config: Mapping[str, Any], key: str, folder: Path) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise SettingsError(f"{folder / CONFIG}: {key} is {value!r}; it must be a number above 0")
    return float(value)
