"""A whole GGUF model, looked at before anything is made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.llama.model_file import check_gguf, check_llama_cpp, file_digest
from querylift.quantize.levels.worker_process import TaskFailed, run

_PLAIN = ("F32", "F16", "BF16")

Stamp = tuple[int, int]
"""Size in bytes and time of change, in nanoseconds: what changes when a file is written to."""


@dataclass(frozen=True, slots=True)
class Source:
    """The model, with its tensors by name and type."""

    path: Path
    sha256: str
    stamp: Stamp
    types: Mapping[str, str] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The manifest's entry."""
        tensors = counted(self.types)
        return {"file": self.path.name, "size_bytes": self.stamp[0], "sha256": self.sha256, "tensors": tensors}

    def check_unchanged(self) -> None:
        """Raise SettingsError where the file is no more what it was."""
        if _stamp(self.path) != self.stamp:
            raise SettingsError(f"{self.path} was changed meanwhile; run the command again once it is written")


def read_source(path: Path, *, requantize: bool = False) -> Source:
    """The model in `path`, which llama.cpp can load and has not been quantised. Raises SettingsError.

    `requantize` allows one that has.
    """
    check_llama_cpp()
    check_gguf(path)
    stamp, sha256 = _stamp(path), file_digest(path)
    types = _types(path)
    rounded = sorted({name for name in types.values() if name not in _PLAIN})
    if rounded and not requantize:
        raise SettingsError(
            f"{path} is quantised already ({', '.join(rounded)}), and would lose twice; "
            "give its f32, f16 or bf16 file, or add --requantize"
        )
    return Source(path, sha256, stamp, types)


def tensor_types(reader: gguf.GGUFReader) -> dict[str, str]:
    """The type of each tensor by name."""
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def open_gguf(path: Path) -> gguf.GGUFReader:
    """What the gguf package reads, up to the last tensor. Raises ValueError where that is not there."""
    try:
        return gguf.GGUFReader(path)
    except (LookupError, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def counted(types: Mapping[str, str]) -> dict[str, int]:
    """How many tensors there are of each type, the most first."""
    return dict(Counter(types.values()).most_common())


def _types(path: Path) -> dict[str, str]:
    try:
        # First, because the gguf package takes every count in a broken file for true.
        run("check", on_progress=lambda count: None, model=str(path.absolute()))
        reader = open_gguf(path)
    except (TaskFailed, ValueError) as error:
        remedy = "give a complete GGUF file that llama.cpp knows"
        raise SettingsError(f"the model {path} cannot be used ({error}); {remedy}") from None
    parts = reader.get_field(gguf.Keys.Split.LLM_KV_SPLIT_COUNT)
    if parts and parts.contents() > 1:
        raise SettingsError(f"{path} is one part of a model; join its parts with llama-gguf-split --merge")
    return tensor_types(reader)


def _stamp(path: Path) -> Stamp:
    """(0, 0) where there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
