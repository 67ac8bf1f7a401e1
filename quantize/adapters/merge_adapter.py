"""A GGUF model and its GGUF adapter as one GGUF model: nothing is added while it writes, so it writes faster.

What llama.cpp adds to a weight for every token, `alpha / rank * B @ A` (see `querylift.quantize.adapters.export_adapter`), is added here once. The
numbers are read from whatever type they have and written as F16, one-dimensional ones as F32; `querylift quantize make` makes
them small again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import STOP
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY, check_gguf, file_digest
from querylift.quantize.adapters.export_adapter import (
    ADAPTER_NAMES_KEY,
    ADAPTER_SHA256_KEY,
    BASE_NAME_KEY,
    BASE_SHA256_KEY,
)
from querylift.quantize.adapters.peft_adapter import Array
from querylift.quantize.conversion.export_model import STOP_KEY
from querylift.quantize.files import replacing

_OF_THE_FILE = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
"""Keys that the writer sets itself, or that are of the old numbers."""
_KEPT = (PROMPT_VERSION_KEY, BASE_NAME_KEY, BASE_SHA256_KEY, ADAPTER_NAMES_KEY, ADAPTER_SHA256_KEY)


@dataclass(frozen=True, slots=True)
class Merged:
    """How many weights of how many were changed."""

    changed: int
    tensors: int


def merge(base: Path, adapter: Path, out: Path) -> Merged:
    """Write `base` with `adapter` on it to `out`, whole or not at all. Raises SettingsError."""
    model, lora = _read(base, "model"), _read(adapter, "adapter")
    _check(model, lora, base, adapter)
    pairs = {tensor.name: tensor for tensor in lora.tensors}
    scale = _scale(lora, pairs)
    unknown = {name.rpartition(".lora_")[0] for name in pairs} - {tensor.name for tensor in model.tensors}
    if unknown:
        raise SettingsError(f"the adapter {adapter} changes {min(unknown)}, which {base} has not; name its own model")
    with replacing(out) as part:
        writer = gguf.GGUFWriter(part, _text(model, "general.architecture"), use_temp_file=True)
        try:
            _describe(writer, model, lora)
            for name, values in _weights(model, pairs, scale):
                writer.add_tensor(name, values)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return Merged(len(pairs) // 2, len(model.tensors))


def _read(path: Path, role: str) -> gguf.GGUFReader:
    check_gguf(path, role=role)
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SettingsError(f"the {role} {path} cannot be read ({error}); give a complete GGUF file") from error


def _check(model: gguf.GGUFReader, lora: gguf.GGUFReader, base: Path, adapter: Path) -> None:
    if _text(lora, "general.type") != "adapter" or _text(lora, "adapter.type") != "lora":
        raise SettingsError(f"{adapter} is no LoRA adapter; make one with `querylift quantize export`")
    made_for = _text(lora, BASE_SHA256_KEY)
    if made_for and made_for != file_digest(base):
        raise SettingsError(f"{adapter} was made for {_text(lora, BASE_NAME_KEY)}, not for {base}; name that model")
    if _text(lora, "general.architecture") != _text(model, "general.architecture"):
        raise SettingsError(f"{adapter} and {base} are of two architectures; name the adapter's own model")


def _scale(lora: gguf.GGUFReader, pairs: Mapping[str, gguf.ReaderTensor]) -> float:
    rank = next(int(tensor.shape[1]) for name, tensor in pairs.items() if name.endswith(".lora_a"))
    field = lora.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    return float(field.contents()) / rank if field else 1.0


def _weights(
    model: gguf.GGUFReader, pairs: Mapping[str, gguf.ReaderTensor], scale: float
) -> Iterator[tuple[str, Array]]:
    for tensor in model.tensors:
        values = _numbers(tensor)
        if f"{tensor.name}.lora_a" in pairs:
            a, b = (_numbers(pairs[f"{tensor.name}.lora_{half}"]) for half in "ab")
            values = values + np.float32(scale) * (b @ a)
        yield tensor.name, values.astype(np.float16 if values.ndim > 1 else np.float32)


def _numbers(tensor: gguf.ReaderTensor) -> Array:
    found: Array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return found.astype(np.float32)


def _describe(writer: gguf.GGUFWriter, model: gguf.GGUFReader, lora: gguf.GGUFReader) -> None:
    """All that the model's file says of itself, and what the adapter's says of the prompt and of what it was made from."""
    ours = {key: lora.fields[key] for key in _KEPT if key in lora.fields}
    for key, field in {**model.fields, **ours}.items():
        if not key.startswith(_OF_THE_FILE):
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if STOP_KEY not in model.fields:
        writer.add_array(STOP_KEY, list(STOP))


def _text(reader: gguf.GGUFReader, key: str) -> str:
    field = reader.get_field(key)
    return str(field.contents()) if field else ""
