"""Plan the tensors of a GGUF model: their source in the folder, their order of rows, and their number type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import gguf
import numpy as np

from querylift.plugin.errors import SettingsError
from querylift.quantize.adapters.export_adapter import reorder_rows_for_rope
from querylift.quantize.adapters.peft_adapter import Array
from querylift.quantize.conversion.architecture import Architecture
from querylift.quantize.conversion.weights import StoredTensor, read_rows

EMBEDDINGS, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
NUMBER_TYPES = {
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "f32": gguf.GGMLQuantizationType.F32,
}
_LARGEST_NUMBERS = {"f16": 65504.0, "bf16": 3.3895313892515355e38, "f32": float(np.finfo(np.float32).max)}
_BYTES_PER_NUMBER = {"f16": 2, "bf16": 2, "f32": 4}
_NUMBERS_PER_BLOCK = 1 << 20
"""How many numbers are in memory at once. A single row or head may have more."""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to write. When `head_rows` is above 0, heads of that many rows are reordered for RoPE."""

    name: str
    source: StoredTensor
    number_type: str
    head_rows: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape, the same as in the folder."""
        return self.source.shape

    @property
    def size_bytes(self) -> int:
        """Size in the GGUF file, without padding."""
        return int(np.prod(self.shape, dtype=np.int64)) * _BYTES_PER_NUMBER[self.number_type]


def plan_tensors(
    model: Architecture, stored_tensors: Mapping[str, StoredTensor], folder: Path, *, number_type: str
) -> list[TensorPlan]:
    """Return every tensor of the file, in its order. Raises SettingsError when the folder's tensors do not fit `model`.

    Vectors stay float32, as llama.cpp needs the scales of norms in that type.
    """
    expected_tensors = _list_expected_tensors(model)
    for name, (_, shape) in expected_tensors.items():
        _check_shape(name, shape, stored_tensors, folder)
    extra_names = sorted(stored_tensors.keys() - expected_tensors.keys())
    if model.tied_embeddings and OUTPUT in extra_names:
        _check_tied_embeddings(stored_tensors, folder)
        extra_names.remove(OUTPUT)
    if extra_names:
        raise SettingsError(
            f"{folder} holds {extra_names[0]}, which {model.name} does not have; save a model without it"
        )
    reordered_tensors = {"attn_q": model.head_dim, "attn_k": model.head_dim} if model.name == "llama" else {}
    return [
        TensorPlan(
            gguf_name,
            stored_tensors[name],
            number_type if len(shape) > 1 else "f32",
            reordered_tensors.get(gguf_name.split(".")[-2], 0),
        )
        for name, (gguf_name, shape) in expected_tensors.items()
    ]


def encode_blocks(tensor: TensorPlan) -> Iterator[Array]:
    """Yield the tensor's data for the file, block by block. Raises SettingsError when a number does not fit its type."""
    head_rows = tensor.head_rows or 1
    at_once = head_rows * max(1, _NUMBERS_PER_BLOCK // (head_rows * tensor.shape[-1]))
    for block in read_rows(tensor.source, at_once=at_once):
        _check_range(tensor, block)
        rows = reorder_rows_for_rope(block, heads=len(block) // head_rows) if tensor.head_rows else block
        yield np.ascontiguousarray(gguf.quants.quantize(rows, NUMBER_TYPES[tensor.number_type]))


def _list_expected_tensors(model: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return GGUF's name and the shape of every tensor, by its name in transformers."""
    embeddings = {EMBEDDINGS: ("token_embd.weight", (model.vocabulary, model.hidden))}
    layers = {
        f"model.layers.{layer}.{name}.weight": (f"blk.{layer}.{gguf_name}.weight", shape)
        for layer in range(model.layers)
        for name, (gguf_name, shape) in _list_layer_tensors(model).items()
    }
    norm = {"model.norm.weight": ("output_norm.weight", (model.hidden,))}
    output = {} if model.tied_embeddings else {OUTPUT: ("output.weight", (model.vocabulary, model.hidden))}
    return {**embeddings, **layers, **norm, **output}


def _list_layer_tensors(model: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
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


def _check_shape(name: str, shape: tuple[int, ...], stored_tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    if name not in stored_tensors:
        raise SettingsError(f"{folder} lacks {name}, which its config.json requires; save the model again")
    stored_shape = stored_tensors[name].shape
    if stored_shape != shape:
        actual, expected = (" x ".join(map(str, sizes)) for sizes in (stored_shape, shape))
        raise SettingsError(f"{name} of {folder} is {actual}, but {expected} by its config.json; save the model again")


def _check_tied_embeddings(stored_tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    """Raise SettingsError when a folder stores tied embeddings twice and the two differ."""
    if EMBEDDINGS in stored_tensors and OUTPUT in stored_tensors:
        embeddings, output = stored_tensors[EMBEDDINGS], stored_tensors[OUTPUT]
        if embeddings.shape == output.shape:
            at_once = max(1, _NUMBERS_PER_BLOCK // embeddings.shape[-1])
            block_pairs = zip_longest(read_rows(embeddings, at_once=at_once), read_rows(output, at_once=at_once))
            if all(np.array_equal(embedding_rows, output_rows) for embedding_rows, output_rows in block_pairs):
                return
    raise SettingsError(
        f"{folder} holds {OUTPUT} different from {EMBEDDINGS}, but its config.json ties the two; save the model again"
    )


def _check_range(tensor: TensorPlan, block: Array) -> None:
    if (np.abs(block) <= _LARGEST_NUMBERS[tensor.number_type]).all():
        return
    if not np.isfinite(block).all():
        raise SettingsError(
            f"{tensor.name} has numbers that are infinite or NaN; the training has failed, so train again"
        )
    largest = float(np.abs(block).max())
    raise SettingsError(
        f"{tensor.name} has numbers up to {largest:.3g}, which {tensor.number_type} cannot hold; use f32"
    )
