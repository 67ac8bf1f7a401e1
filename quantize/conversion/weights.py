"""The weights of a Hugging Face folder: their places in its safetensors files, and their numbers, some rows at a time.

They are read without torch, and without loading a whole model. safetensors itself would need one of the two, as numpy has no
bfloat16.
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
from querylift.plugin.files import read_json_object
from querylift.quantize.adapters.peft_adapter import Array, convert_to_float32

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
"""Maps each tensor to its file, in a folder with several."""
_DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
_CHUNK_BYTES = 1 << 20
_REMEDY = "save the model again"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's numbers start in a file, and their type, a key of `_DTYPES`."""

    file: Path
    start: int
    dtype: str
    shape: tuple[int, ...]


def find_weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of `folder`, ordered by name. Raises SettingsError when there are none."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if not (folder / INDEX_FILE).is_file():
        raise SettingsError(
            f"{folder} has no {SINGLE_FILE}; save the model as safetensors, the only format that is read"
        )
    weight_map = read_json_object(folder / INDEX_FILE, remedy=_REMEDY).get("weight_map")
    file_names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not file_names or not all(map(_is_plain_file_name, file_names)):
        raise SettingsError(f"{folder / INDEX_FILE} has no weight_map that names files in its folder; {_REMEDY}")
    return [folder / name for name in sorted(set(file_names))]


def locate_tensors(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Return every tensor of `files` by name. Raises SettingsError for a broken file or a tensor in two files."""
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _read_header(file).items():
            if name in tensors:
                raise SettingsError(f"{tensors[name].file} and {file} both hold {name}; {_REMEDY}")
            tensors[name] = tensor
    return tensors


def read_rows(tensor: StoredTensor, *, at_once: int) -> Iterator[Array]:
    """Yield the numbers as float32, in blocks of `at_once` rows. A vector is one row. Raises SettingsError."""
    columns = tensor.shape[-1]
    total = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    dtype = np.dtype(_DTYPES[tensor.dtype])
    try:
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            for row in range(0, total, at_once):
                count = min(at_once, total - row) * columns
                numbers = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
                yield convert_to_float32(numbers).reshape(-1, columns)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{tensor.file} cannot be read ({error}); {_REMEDY}") from None


def compute_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the files' contents, one after the other. Raises SettingsError."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise SettingsError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from None
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors in the file's header. safetensors checks the file against its header first."""
    try:
        with safetensors.safe_open(path, framework="numpy"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            supported_types = ", ".join(_DTYPES)
            raise SettingsError(
                f"{name} of {path} is of type {entry['dtype']}; save the model as one of {supported_types}"
            )
    return {
        name: StoredTensor(path, 8 + size + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def _is_plain_file_name(value: object) -> bool:
    """Return whether this names a file in the folder itself. A path could lead anywhere."""
    return isinstance(value, str) and Path(value).name == value and value != ".."
