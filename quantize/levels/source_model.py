"""Check a GGUF model before smaller files are made from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from querylift.plugin.errors import SettingsError
from querylift.plugin.files import compute_file_digest
from querylift.plugin.generators.llama.model_file import check_gguf_magic, check_llama_cpp
from querylift.quantize.gguf_file import open_gguf_reader
from querylift.quantize.levels.worker_process import TaskFailed, run_in_worker

_UNQUANTISED_TYPES = ("F32", "F16", "BF16")

FileStamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds. It changes when the file is written."""


@dataclass(frozen=True, slots=True)
class SourceModel:
    """The model that levels are made from. `types` holds the type of each tensor by name."""

    path: Path
    sha256: str
    stamp: FileStamp
    types: Mapping[str, str] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the model's entry in the manifest."""
        tensors = count_tensors_by_type(self.types)
        return {"file": self.path.name, "size_bytes": self.stamp[0], "sha256": self.sha256, "tensors": tensors}

    def check_unchanged(self) -> None:
        """Raise SettingsError when the file has changed since it was read."""
        if _read_stamp(self.path) != self.stamp:
            raise SettingsError(f"{self.path} changed during the run; run the command again when it is complete")


def read_source_model(path: Path, *, requantize: bool = False) -> SourceModel:
    """Read a model that llama.cpp can load. Raises SettingsError.

    A model that is already quantised is refused unless `requantize` is true.
    """
    check_llama_cpp()
    check_gguf_magic(path)
    stamp, sha256 = _read_stamp(path), compute_file_digest(path)
    types = _read_checked_types(path)
    quantised_types = sorted({name for name in types.values() if name not in _UNQUANTISED_TYPES})
    if quantised_types and not requantize:
        raise SettingsError(
            f"{path} is already quantised ({', '.join(quantised_types)}), and would lose precision twice; "
            "give its f32, f16 or bf16 file, or add --requantize"
        )
    return SourceModel(path, sha256, stamp, types)


def read_tensor_types(reader: gguf.GGUFReader) -> dict[str, str]:
    """Return the type of each tensor by name."""
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Read a GGUF file with the gguf package. Raises ValueError when a part of the file is missing."""
    try:
        return open_gguf_reader(path)
    except (LookupError, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def count_tensors_by_type(types: Mapping[str, str]) -> dict[str, int]:
    """Return the number of tensors of each type, the most frequent type first."""
    return dict(Counter(types.values()).most_common())


def _read_checked_types(path: Path) -> dict[str, str]:
    try:
        # llama.cpp checks the file first, because the gguf package believes every count in a broken file.
        run_in_worker("check", on_progress=lambda count: None, model=str(path.absolute()))
        reader = open_gguf(path)
    except (TaskFailed, ValueError) as error:
        remedy = "give a complete GGUF file that llama.cpp supports"
        raise SettingsError(f"the model {path} cannot be used ({error}); {remedy}") from None
    split_count = reader.get_field(gguf.Keys.Split.LLM_KV_SPLIT_COUNT)
    if split_count and split_count.contents() > 1:
        raise SettingsError(f"{path} is one part of a model; join its parts with llama-gguf-split --merge")
    return read_tensor_types(reader)


def _read_stamp(path: Path) -> FileStamp:
    """Return the file's stamp, or (0, 0) when the file does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
