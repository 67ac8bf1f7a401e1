"""Write LoRA adapters as the GGUF adapter file that llama.cpp applies to a model.

llama.cpp adds `alpha / rank * B @ A` to a weight, where alpha is `adapter.lora.alpha` and rank is the columns of B. B already
includes PEFT's scale, so alpha is the rank. GGUF files of architecture llama order the rows of the q and k projections for
RoPE differently from Hugging Face, so the rows of their B are reordered.

Numbers are Q8_0 by default, and not only to save space. llama.cpp multiplies floats with one kernel for a batch of one row,
and with another for more rows. The text for a query would then depend on the other queries in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from querylift.plugin.errors import SettingsError
from querylift.plugin.expansion import PROMPT_VERSION
from querylift.plugin.files import compute_file_digest, replace_file
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY, check_gguf_magic, find_packaged_model
from querylift.quantize.adapters.adapter_stack import (
    PACKAGED_MODEL_NAME,
    combine_adapters,
    pad_to_rank,
    resolve_adapter_stack,
)
from querylift.quantize.adapters.peft_adapter import Adapter, Array, LoraMatrices, read_adapter
from querylift.quantize.gguf_file import open_gguf_reader

BASE_NAME_KEY = "querylift.base.name"
BASE_SHA256_KEY = "querylift.base.sha256"
ADAPTER_NAMES_KEY = "querylift.adapter.names"
"""The metadata key of the adapter folders, the lowest first. The digests of their weights have the same order."""
ADAPTER_SHA256_KEY = "querylift.adapter.sha256"
ARCHITECTURES = ("llama", "qwen3")
NUMBER_TYPES = {
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "f16": gguf.GGMLQuantizationType.F16,
    "f32": gguf.GGMLQuantizationType.F32,
}
_Q8_0_BLOCK_SIZE = 32
_LARGEST_NUMBER = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class BaseModelInfo:
    """The GGUF model that an adapter is applied to. `shapes` holds (out, in) of each weight by its GGUF name.

    `accepted_names` are the names that an adapter may use for it, besides the path of the same file.
    """

    name: str
    sha256: str
    architecture: str
    heads: int
    kv_heads: int
    shapes: Mapping[str, tuple[int, ...]]
    accepted_names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ExportedAdapter:
    """How many weights are adapted, their rank before the padding for q8_0, and the names of the folders."""

    weights: int
    rank: int
    names: tuple[str, ...]


def read_base_model(path: Path) -> BaseModelInfo:
    """Read what the export must know of a GGUF model. Raises SettingsError."""
    check_gguf_magic(path)
    try:
        reader = open_gguf_reader(path)
        architecture = str(_read_field(reader, "general.architecture"))
        heads = int(_read_field(reader, f"{architecture}.attention.head_count"))
        kv_heads = int(_read_field(reader, f"{architecture}.attention.head_count_kv", heads))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SettingsError(f"the model {path} cannot be read ({error}); give a complete GGUF file") from error
    if architecture not in ARCHITECTURES:
        supported_names = " or ".join(ARCHITECTURES)
        raise SettingsError(f"the model {path} is of architecture {architecture}; name one of {supported_names}")
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    digest = compute_file_digest(path)
    return BaseModelInfo(path.name, digest, architecture, heads, kv_heads, shapes, _find_accepted_names(digest))


def export_adapter(
    folder: Path, out: Path, *, base: BaseModelInfo, number_type: str = "q8_0", any_base: bool = False
) -> ExportedAdapter:
    """Write the adapter in `folder`, combined with the adapters that it was trained on, to `out`. The write is atomic.

    `any_base` skips the check that `base` is the model that the lowest adapter names. Raises SettingsError.
    """
    folders, trained_on = resolve_adapter_stack(folder)
    if not any_base:
        _check_base(folders[0], trained_on, base)
    stack = [read_adapter(member) for member in folders]
    combined = combine_adapters(stack)
    rank = combined.rank + (-combined.rank % _Q8_0_BLOCK_SIZE if number_type == "q8_0" else 0)
    matrices_by_name = {
        name: _fit_to_base(name, pad_to_rank(matrices, rank=rank), base) for name, matrices in combined.matrices.items()
    }
    with replace_file(out) as part:
        _write_adapter_file(part, matrices_by_name, stack, base=base, rank=rank, number_type=number_type)
    return ExportedAdapter(len(matrices_by_name), combined.rank, tuple(adapter.name for adapter in stack))


def reorder_rows_for_rope(rows: Array, *, heads: int) -> Array:
    """Return the rows of a q or k projection in the order of a GGUF file of architecture llama.

    RoPE rotates pairs of rows. Hugging Face pairs row i of a head with row i + half, llama.cpp with the next row.
    """
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _find_accepted_names(sha256: str) -> frozenset[str]:
    try:
        is_packaged_model = compute_file_digest(find_packaged_model()) == sha256
    except SettingsError:  # the package is not installed
        is_packaged_model = False
    return frozenset({PACKAGED_MODEL_NAME}) if is_packaged_model else frozenset()


def _check_base(folder: Path, trained_on: str, base: BaseModelInfo) -> None:
    path = Path(trained_on)
    if trained_on not in base.accepted_names and not (path.is_file() and compute_file_digest(path) == base.sha256):
        raise SettingsError(
            f"{folder} was trained on {trained_on}, not on {base.name}; give that model's GGUF file with --base, "
            "or add --any-base if both are the same model"
        )


def _fit_to_base(name: str, matrices: LoraMatrices, base: BaseModelInfo) -> LoraMatrices:
    """Return the matrices with rows in GGUF's order. Raises SettingsError when the base's weight has another shape."""
    shape = base.shapes.get(name)
    if shape != (matrices.b.shape[0], matrices.a.shape[1]):
        problem = f"is {shape[0]} x {shape[1]}" if shape else "does not exist"
        adapter_shape = f"{matrices.b.shape[0]} x {matrices.a.shape[1]}"
        raise SettingsError(
            f"{name} {problem} in {base.name}, and is {adapter_shape} in the adapter; name the adapter's own base"
        )
    heads = {"attn_q": base.heads, "attn_k": base.kv_heads}.get(name.split(".")[2])
    if heads is None or base.architecture != "llama":
        return matrices
    return LoraMatrices(matrices.a, reorder_rows_for_rope(matrices.b, heads=heads))


def _write_adapter_file(
    path: Path,
    matrices_by_name: Mapping[str, LoraMatrices],
    stack: Sequence[Adapter],
    *,
    base: BaseModelInfo,
    rank: int,
    number_type: str,
) -> None:
    writer = gguf.GGUFWriter(path, base.architecture)
    _add_metadata(writer, stack, base=base, rank=rank)
    raw_dtype = NUMBER_TYPES[number_type]
    for name, matrices in matrices_by_name.items():
        writer.add_tensor(f"{name}.lora_a", _encode_matrix(name, matrices.a, number_type), raw_dtype=raw_dtype)
        writer.add_tensor(f"{name}.lora_b", _encode_matrix(name, matrices.b, number_type), raw_dtype=raw_dtype)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter, stack: Sequence[Adapter], *, base: BaseModelInfo, rank: int) -> None:
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    writer.add_string(PROMPT_VERSION_KEY, PROMPT_VERSION)
    writer.add_string(BASE_NAME_KEY, base.name)
    writer.add_string(BASE_SHA256_KEY, base.sha256)
    writer.add_array(ADAPTER_NAMES_KEY, [adapter.name for adapter in stack])
    writer.add_array(ADAPTER_SHA256_KEY, [adapter.sha256 for adapter in stack])


def _encode_matrix(name: str, matrix: Array, number_type: str) -> Array:
    if not (np.abs(matrix) <= _LARGEST_NUMBER).all():
        raise SettingsError(f"{name} has infinite or very large numbers; the training has failed, so train again")
    if number_type == "q8_0" and matrix.shape[1] % _Q8_0_BLOCK_SIZE:
        raise SettingsError(
            f"{name} has rows of {matrix.shape[1]} numbers, which q8_0's block size of {_Q8_0_BLOCK_SIZE} "
            "does not divide; use --type f16"
        )
    return np.ascontiguousarray(gguf.quants.quantize(matrix, NUMBER_TYPES[number_type]))


def _read_field(reader: gguf.GGUFReader, key: str, default: object = None) -> Any:
    field = reader.get_field(key)
    value = field.contents() if field else default
    if value is None:
        raise ValueError(f"it has no {key}")
    return value
