"""The expander's terms and their surface words, in memory-mapped files.

The operating system loads only the parts that are used, and processes share them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from querylift.plugin.errors import MissingExtra, SettingsError

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

WORDS_FILE, WORD_ENDS_FILE = "words.bin", "words.ends.npy"


class Word(NamedTuple):
    """A term of the index, and its surface word; "" when none is known."""

    term: str
    surface: str


class Vocabulary:
    """The terms by number. Raises SettingsError, MissingExtra when its files cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._ends = map_array_file(folder / WORD_ENDS_FILE)
        self._bytes = _map_bytes_file(folder / WORDS_FILE)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> Word:
        start = int(self._ends[number - 1]) if number else 0
        term, _, surface = self._bytes[start : int(self._ends[number])].tobytes().decode().partition("\0")
        return Word(term, surface)


def write_vocabulary(folder: Path, words: Iterable[Word]) -> list[str]:
    """Write the files that `Vocabulary` reads. Return their names."""
    import numpy as np

    ends = []
    with (folder / WORDS_FILE).open("wb") as file:
        for word in words:
            file.write(f"{word.term}\0{word.surface}".encode())
            ends.append(file.tell())
    np.save(folder / WORD_ENDS_FILE, np.array(ends, dtype=np.int64))
    return [WORDS_FILE, WORD_ENDS_FILE]


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
