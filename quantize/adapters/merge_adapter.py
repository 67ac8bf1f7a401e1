"""Merge a GGUF adapter into a GGUF model. The merged model writes faster, because nothing is added at run time.

llama.cpp adds `alpha / rank * B @ A` to a weight for every token (see `export_adapter`); here it is added once. Numbers of any
type are read, and written as F16, or as F32 in vectors. `querylift quantize make` makes smaller files of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import STOP_STRINGS
from querylift.plugin.files import compute_file_digest, replace_file
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY, check_gguf_magic
from querylift.quantize.adapters.export_adapter import (
    ADAPTER_NAMES_KEY,
    ADAPTER_SHA256_KEY,
    BASE_NAME_KEY,
    BASE_SHA256_KEY,
)
from querylift.quantize.adapters.peft_adapter import Array
from querylift.quantize.conversion.export_model import STOP_KEY
from querylift.quantize.gguf_file import open_gguf_reader

_UNCOPIED_KEYS = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
"""Beginnings of metadata keys that the writer sets itself, or that describe the old numbers."""
_ADAPTER_KEYS = (PROMPT_VERSION_KEY, BASE_NAME_KEY, BASE_SHA256_KEY, ADAPTER_NAMES_KEY, ADAPTER_SHA256_KEY)
"""Metadata keys that are copied from the adapter."""


@dataclass(frozen=True, slots=True)
class MergeCounts:
    """How many tensors the merged model has, and how many of them the adapter changed."""

    changed: int
    tensors: int


def merge_adapter(base: Path, adapter: Path, out: Path) -> MergeCounts:
    """Write `base` with `adapter` merged into it to `out`, atomically. Raises SettingsError."""
    model, lora = _open_gguf_file(base, "model"), _open_gguf_file(adapter, "adapter")
    _check_compatible(model, lora, base, adapter)
    lora_tensors = {tensor.name: tensor for tensor in lora.tensors}
    scale = _read_scale(lora, lora_tensors)
    weight_names = {name.rpartition(".lora_")[0] for name in lora_tensors}
    unknown_names = weight_names - {tensor.name for tensor in model.tensors}
    if unknown_names:
        raise SettingsError(
            f"the adapter {adapter} changes {min(unknown_names)}, which {base} does not have; name its own model"
        )
    with replace_file(out) as part:
        writer = gguf.GGUFWriter(part, _read_text_field(model, "general.architecture"), use_temp_file=True)
        try:
            _copy_metadata(writer, model, lora)
            for name, weight in _merge_tensors(model, lora_tensors, scale):
                writer.add_tensor(name, weight)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return MergeCounts(len(lora_tensors) // 2, len(model.tensors))


def _open_gguf_file(path: Path, role: str) -> gguf.GGUFReader:
    check_gguf_magic(path, role=role)
    try:
        return open_gguf_reader(path)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SettingsError(f"the {role} {path} cannot be read ({error}); give a complete GGUF file") from error


def _check_compatible(model: gguf.GGUFReader, lora: gguf.GGUFReader, base: Path, adapter: Path) -> None:
    if _read_text_field(lora, "general.type") != "adapter" or _read_text_field(lora, "adapter.type") != "lora":
        raise SettingsError(f"{adapter} is not a LoRA adapter; make one with `querylift quantize export`")
    base_sha256 = _read_text_field(lora, BASE_SHA256_KEY)
    if base_sha256 and base_sha256 != compute_file_digest(base):
        base_name = _read_text_field(lora, BASE_NAME_KEY)
        raise SettingsError(f"{adapter} was made for {base_name}, not for {base}; name that model with --base")
    if _read_text_field(lora, "general.architecture") != _read_text_field(model, "general.architecture"):
        raise SettingsError(f"{adapter} and {base} have different architectures; name the adapter's own model")


def _read_scale(lora: gguf.GGUFReader, lora_tensors: Mapping[str, gguf.ReaderTensor]) -> float:
    rank = next(int(tensor.shape[1]) for name, tensor in lora_tensors.items() if name.endswith(".lora_a"))
    alpha = lora.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    return float(alpha.contents()) / rank if alpha else 1.0


def _merge_tensors(
    model: gguf.GGUFReader, lora_tensors: Mapping[str, gguf.ReaderTensor], scale: float
) -> Iterator[tuple[str, Array]]:
    for tensor in model.tensors:
        weight = _dequantise(tensor)
        if f"{tensor.name}.lora_a" in lora_tensors:
            a, b = (_dequantise(lora_tensors[f"{tensor.name}.lora_{half}"]) for half in "ab")
            weight = weight + np.float32(scale) * (b @ a)
        yield tensor.name, weight.astype(np.float16 if weight.ndim > 1 else np.float32)


def _dequantise(tensor: gguf.ReaderTensor) -> Array:
    numbers: Array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return numbers.astype(np.float32)


def _copy_metadata(writer: gguf.GGUFWriter, model: gguf.GGUFReader, lora: gguf.GGUFReader) -> None:
    """Copy the model's metadata, and the adapter's prompt and origin."""
    adapter_fields = {key: lora.fields[key] for key in _ADAPTER_KEYS if key in lora.fields}
    for key, field in {**model.fields, **adapter_fields}.items():
        if not key.startswith(_UNCOPIED_KEYS):
            value_type = field.types[0]
            element_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), value_type, sub_type=element_type)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if STOP_KEY not in model.fields:
        writer.add_array(STOP_KEY, list(STOP_STRINGS))


def _read_text_field(reader: gguf.GGUFReader, key: str) -> str:
    field = reader.get_field(key)
    return str(field.contents()) if field else ""
