"""LoRA adapters written as the GGUF adapter file that llama.cpp puts on a model.

llama.cpp adds `alpha / rank * B @ A` to a weight, alpha being `adapter.lora.alpha`, and rank the columns of B. The scale
stands in B here, so alpha is the rank. In a GGUF file of architecture llama the rows of the q and k projections stand in
another order than in Hugging Face's; the rows of their B must follow.

The numbers are Q8_0 by default, and not only for the size: llama.cpp multiplies floats by one kernel where a batch has one
row and by another where it has more, so that what is written for a query would depend on what else is in the batch.
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
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY, check_gguf, file_digest, packaged_model
from querylift.quantize.adapters.adapter_stack import PACKAGED, follow, stacked, widened
from querylift.quantize.adapters.peft_adapter import Adapter, Array, Pair, read_adapter
from querylift.quantize.files import replacing

BASE_NAME_KEY = "querylift.base.name"
BASE_SHA256_KEY = "querylift.base.sha256"
ADAPTER_NAMES_KEY = "querylift.adapter.names"
"""The folders that the file was made of, the lowest first; their weights' digests are kept in the same order."""
ADAPTER_SHA256_KEY = "querylift.adapter.sha256"
ARCHITECTURES = ("llama", "qwen3")
NUMBER_TYPES = {
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "f16": gguf.GGMLQuantizationType.F16,
    "f32": gguf.GGMLQuantizationType.F32,
}
_BLOCK = 32
"""Numbers of one row that Q8_0 keeps together."""
_MOST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Base:
    """The model that an adapter goes on. `shapes` holds (out, in) of each weight by its GGUF name.

    `known_as` holds what an adapter may call it, other than by a path of the same file.
    """

    name: str
    sha256: str
    architecture: str
    heads: int
    kv_heads: int
    shapes: Mapping[str, tuple[int, ...]]
    known_as: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: how many adapted weights, of which rank before q8_0's padding, from which folders."""

    weights: int
    rank: int
    names: tuple[str, ...]


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
    digest = file_digest(path)
    return Base(path.name, digest, architecture, heads, kv_heads, shapes, _known_as(digest))


def export_adapter(
    folder: Path, out: Path, *, base: Base, number_type: str = "q8_0", any_base: bool = False
) -> Exported:
    """Write the adapter in `folder`, and those that it was trained on, to `out` as one, whole or not at all.

    `any_base` takes the caller's word that `base` is the model that the lowest adapter names. Raises SettingsError.
    """
    folders, trained_on = follow(folder)
    if not any_base:
        _check_base(folders[0], trained_on, base)
    chain = [read_adapter(member) for member in folders]
    whole = stacked(chain)
    rank = whole.rank + (-whole.rank % _BLOCK if number_type == "q8_0" else 0)
    pairs = {name: _fitting(name, widened(pair, rank=rank), base) for name, pair in whole.pairs.items()}
    with replacing(out) as part:
        _write(part, pairs, chain, base=base, rank=rank, number_type=number_type)
    return Exported(len(pairs), whole.rank, tuple(adapter.name for adapter in chain))


def gguf_rows(b: Array, *, heads: int) -> Array:
    """The rows of a q or k projection in the order of a GGUF file of architecture llama.

    Hugging Face turns row i of a head with row i + half, llama.cpp with its neighbour.
    """
    return b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def _known_as(sha256: str) -> frozenset[str]:
    try:
        return frozenset({PACKAGED} if file_digest(packaged_model()) == sha256 else ())
    except SettingsError:
        return frozenset()  # the package is not installed


def _check_base(folder: Path, trained_on: str, base: Base) -> None:
    path = Path(trained_on)
    if trained_on not in base.known_as and not (path.is_file() and file_digest(path) == base.sha256):
        raise SettingsError(
            f"{folder} was trained on {trained_on}, not on {base.name}; give that model's GGUF file with --base, "
            "or add --any-base if both are one model in two formats"
        )


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


def _write(
    path: Path, pairs: Mapping[str, Pair], chain: Sequence[Adapter], *, base: Base, rank: int, number_type: str
) -> None:
    writer = gguf.GGUFWriter(path, base.architecture)
    _describe(writer, chain, base=base, rank=rank)
    kind = NUMBER_TYPES[number_type]
    for name, pair in pairs.items():
        writer.add_tensor(f"{name}.lora_a", _numbers(name, pair.a, number_type), raw_dtype=kind)
        writer.add_tensor(f"{name}.lora_b", _numbers(name, pair.b, number_type), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _describe(writer: gguf.GGUFWriter, chain: Sequence[Adapter], *, base: Base, rank: int) -> None:
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    writer.add_string(PROMPT_VERSION_KEY, PROMPT_VERSION)
    writer.add_string(BASE_NAME_KEY, base.name)
    writer.add_string(BASE_SHA256_KEY, base.sha256)
    writer.add_array(ADAPTER_NAMES_KEY, [adapter.name for adapter in chain])
    writer.add_array(ADAPTER_SHA256_KEY, [adapter.sha256 for adapter in chain])


def _numbers(name: str, values: Array, number_type: str) -> Array:
    if not (np.abs(values) <= _MOST).all():
        raise SettingsError(f"{name} has infinite or very large numbers; the training has failed, so train again")
    if number_type == "q8_0" and values.shape[1] % _BLOCK:
        raise SettingsError(f"{name} has rows of {values.shape[1]} numbers, which q8_0 cannot hold; use f16")
    return np.ascontiguousarray(gguf.quants.quantize(values, NUMBER_TYPES[number_type]))


def _field(reader: gguf.GGUFReader, key: str, default: object = None) -> Any:
    field = reader.get_field(key)
    value = field.contents() if field else default
    if value is None:
        raise ValueError(f"it has no {key}")
    return value
