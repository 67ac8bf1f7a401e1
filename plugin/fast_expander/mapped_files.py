"""Memory-mapped files of an expander's folder: arrays, and lists of texts.

The operating system loads only the parts that are used, and processes share them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from querylift.plugin.errors import MissingExtra, SettingsError

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class MappedTexts:
    """A list of texts in the files NAME.bin and NAME.ends.npy of `folder`. Raises SettingsError, MissingExtra."""

    def __init__(self, folder: Path, name: str) -> None:
        bytes_name, ends_name = list_text_files(name)
        self._ends = map_array_file(folder / ends_name)
        self._bytes = _map_bytes_file(folder / bytes_name)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:
        start = int(self._ends[number - 1]) if number else 0
        return self._bytes[start : int(self._ends[number])].tobytes().decode()


def list_text_files(name: str) -> tuple[str, str]:
    """Return the names of the two files of a list of texts."""
    return f"{name}.bin", f"{name}.ends.npy"


def write_texts(folder: Path, name: str, texts: Iterable[str]) -> list[str]:
    """Write the files that `MappedTexts` reads. Return their names."""
    import numpy as np

    bytes_name, ends_name = list_text_files(name)
    ends = []
    with (folder / bytes_name).open("wb") as file:
        for text in texts:
            file.write(text.encode())
            ends.append(file.tell())
    np.save(folder / ends_name, np.array(ends, dtype=np.int64))
    return [bytes_name, ends_name]


def map_array_file(path: Path) -> Array:
    """Return the memory-mapped array of a .npy file. Raises SettingsError, MissingExtra."""
    try:
        import numpy as np
    except ImportError:
        raise MissingExtra("numpy", "expander") from None
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); build the expander again") from None
    return array


def _map_bytes_file(path: Path) -> Array:
    import numpy as np

    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); build the expander again") from None
