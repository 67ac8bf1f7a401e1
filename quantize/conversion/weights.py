"""The weights of a Hugging Face folder: where each lies in its safetensors files, and its numbers, some rows at a time.

Read without torch, and without a model's size of memory: numpy, which safetensors would read them with, knows no bfloat16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

from querylift.plugin.errors import SettingsError
from querylift.quantize.adapters.peft_adapter import Array, as_float32
from querylift.quantize.files import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Which file holds which tensor, where there are several."""
_DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
_CHUNK_BYTES = 1 << 20
_REMEDY = "save the model again"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the numbers of one tensor begin, and what they are: `dtype` is a key of `_DTYPES`."""

    file: Path
    start: int
    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of `folder`, by name. Raises SettingsError where there are none."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise SettingsError(f"{folder} has no {SINGLE}; save the model as safetensors, the only form that is read")
    named = read_json(folder / INDEX, remedy=_REMEDY).get("weight_map")
    names = sorted(set(named.values())) if isinstance(named, dict) and all(map(_is_name, named.values())) else []
    if not names:
        raise SettingsError(f"{folder / INDEX} has no weight_map of names of files beside it; {_REMEDY}")
    return [folder / name for name in names]


def find_weights(files: Sequence[Path]) -> dict[str, Stored]:
    """Every tensor of `files` by its name. Raises SettingsError where a file is torn, or two hold the same tensor."""
    found: dict[str, Stored] = {}
    for file in files:
        for name, stored in _tensors(file).items():
            if name in found:
                raise SettingsError(f"{found[name].file} and {file} both hold {name}; {_REMEDY}")
            found[name] = stored
    return found


def read_rows(stored: Stored, *, at_once: int) -> Iterator[Array]:
    """The numbers as float32, in blocks of `at_once` rows; a vector is one row. Raises SettingsError."""
    columns = stored.shape[-1]
    total = int(np.prod(stored.shape[:-1], dtype=np.int64))
    kind = np.dtype(_DTYPES[stored.dtype])
    try:
        with stored.file.open("rb") as file:
            file.seek(stored.start)
            for row in range(0, total, at_once):
                count = min(at_once, total - row) * columns
                yield as_float32(np.frombuffer(file.read(count * kind.itemsize), kind, count)).reshape(-1, columns)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{stored.file} cannot be read ({error}); {_REMEDY}") from None


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of the files one after the other: of a single one, its own. Raises SettingsError."""
    whole = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    whole.update(chunk)
        except OSError as error:
            raise SettingsError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from None
    return whole.hexdigest()


def _tensors(path: Path) -> dict[str, Stored]:
    """What the file's header says, once safetensors has found that the file is as it says."""
    try:
        with safetensors.safe_open(path, framework="numpy"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise SettingsError(f"{name} of {path} is of type {entry['dtype']}; save the model as one of {known}")
    return {
        name: Stored(path, 8 + size + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def _is_name(value: object) -> bool:
    """Whether this is the name of a file in the folder itself; others could lead anywhere."""
    return isinstance(value, str) and Path(value).name == value and value != ".."
