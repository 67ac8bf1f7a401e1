"""The tensors of a GGUF model: which of the folder's each one is, the order of its rows, the type of its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import gguf
import numpy as np

from querylift.plugin.errors import SettingsError
from querylift.quantize.adapters.export_adapter import gguf_rows
from querylift.quantize.adapters.peft_adapter import Array
from querylift.quantize.conversion.architecture import Architecture
from querylift.quantize.conversion.weights import Stored, read_rows

EMBEDDINGS, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
NUMBER_TYPES = {
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "f32": gguf.GGMLQuantizationType.F32,
}
_LARGEST = {"f16": 65504.0, "bf16": 3.3895313892515355e38, "f32": float(np.finfo(np.float32).max)}
_BYTES = {"f16": 2, "bf16": 2, "f32": 4}
_BLOCK = 1 << 20
"""Numbers that are in memory at once, or as many as one row or one head has."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to be written. Where `head_rows` is not 0, the rows of each head of that many are reordered."""

    name: str
    source: Stored
    number_type: str
    head_rows: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * _BYTES[self.number_type]


def plan(model: Architecture, stored: Mapping[str, Stored], folder: Path, *, number_type: str) -> list[Tensor]:
    """Every tensor of the file, in its order. Raises SettingsError where `stored` is not what `model` consists of.

    A vector stays float32, as llama.cpp wants the scales of norms.
    """
    wanted = _wanted(model)
    for name, (_, shape) in wanted.items():
        _check_shape(name, shape, stored, folder)
    extra = sorted(stored.keys() - wanted.keys())
    if model.tied and OUTPUT in extra:
        _check_tied(stored, folder)
        extra.remove(OUTPUT)
    if extra:
        raise SettingsError(f"{folder} holds {extra[0]}, which {model.name} does not have; save a plain model")
    turned = {"attn_q": model.head_dim, "attn_k": model.head_dim} if model.name == "llama" else {}
    return [
        Tensor(own, stored[name], number_type if len(shape) > 1 else "f32", turned.get(own.split(".")[-2], 0))
        for name, (own, shape) in wanted.items()
    ]


def numbers(tensor: Tensor) -> Iterator[Array]:
    """What the file holds of `tensor`, block by block. Raises SettingsError where a number does not fit."""
    rows = tensor.head_rows or 1
    at_once = rows * max(1, _BLOCK // (rows * tensor.shape[-1]))
    for block in read_rows(tensor.source, at_once=at_once):
        _check_numbers(tensor, block)
        ordered = gguf_rows(block, heads=len(block) // rows) if tensor.head_rows else block
        yield np.ascontiguousarray(gguf.quants.quantize(ordered, NUMBER_TYPES[tensor.number_type]))


def _wanted(model: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF's name and the shape of every tensor, by the name that transformers gives it."""
    words = {EMBEDDINGS: ("token_embd.weight", (model.vocabulary, model.hidden))}
    layers = {
        f"model.layers.{layer}.{name}.weight": (f"blk.{layer}.{own}.weight", shape)
        for layer in range(model.layers)
        for name, (own, shape) in _layer(model).items()
    }
    end = {"model.norm.weight": ("output_norm.weight", (model.hidden,))}
    output = {} if model.tied else {OUTPUT: ("output.weight", (model.vocabulary, model.hidden))}
    return {**words, **layers, **end, **output}


def _layer(model: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
    hidden, inner = model.hidden, model.feed_forward
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    norms = {
        "self_attn.q_norm": ("attn_q_norm", (model.head_dim,)),
        "self_attn.k_norm": ("attn_k_norm", (model.head_dim,)),
    }
    return {
        "input_layernorm": ("attn_norm", (hidden,)),
        "self_attn.q_proj": ("attn_q", (queries, hidden)),
        "self_attn.k_proj": ("attn_k", (keys, hidden)),
        "self_attn.v_proj": ("attn_v", (keys, hidden)),
        "self_attn.o_proj": ("attn_output", (hidden, queries)),
        **(norms if model.name == "qwen3" else {}),
        "post_attention_layernorm": ("ffn_norm", (hidden,)),
        "mlp.gate_proj": ("ffn_gate", (inner, hidden)),
        "mlp.up_proj": ("ffn_up", (inner, hidden)),
        "mlp.down_proj": ("ffn_down", (hidden, inner)),
    }


def _check_shape(name: str, shape: tuple[int, ...], stored: Mapping[str, Stored], folder: Path) -> None:
    if name not in stored:
        raise SettingsError(f"{folder} lacks {name}, which its config.json asks for; save the model again")
    if stored[name].shape != shape:
        found, wanted = (" x ".join(map(str, one)) for one in (stored[name].shape, shape))
        raise SettingsError(f"{name} of {folder} is {found}, and {wanted} by its config.json; save the model again")


def _check_tied(stored: Mapping[str, Stored], folder: Path) -> None:
    """Some save tied weights twice; where the two differ, one of them says something that the model would not do."""
    both = [stored[name] for name in (EMBEDDINGS, OUTPUT) if name in stored]
    if len(both) == 2 and both[0].shape == both[1].shape:
        at_once = max(1, _BLOCK // both[0].shape[-1])
        blocks = zip_longest(*(read_rows(one, at_once=at_once) for one in both))
        if all(np.array_equal(one, other) for one, other in blocks):
            return
    raise SettingsError(
        f"{folder} holds {OUTPUT} other than {EMBEDDINGS}, and its config.json ties the two; save the model again"
    )


def _check_numbers(tensor: Tensor, block: Array) -> None:
    if (np.abs(block) <= _LARGEST[tensor.number_type]).all():
        return
    if not np.isfinite(block).all():
        raise SettingsError(
            f"{tensor.name} has infinite numbers or none at all (NaN); the training has failed, so train again"
        )
    largest = float(np.abs(block).max())
    raise SettingsError(
        f"{tensor.name} has numbers up to {largest:.3g}, which {tensor.number_type} cannot hold; use f32"
    )
