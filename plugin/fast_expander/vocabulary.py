"""Files that are read where they lie: the operating system keeps in memory what is used of them, and shares it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from querylift.plugin.errors import MissingExtra, SettingsError

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

WORDS, WORD_ENDS = "words.bin", "words.ends.npy"


class Word(NamedTuple):
    """A term as it stands in the index, and the word that it is most often made of there."""

    term: str
    surface: str


class Vocabulary:
    """Terms by number."""

    def __init__(self, folder: Path) -> None:
        self._ends = mapped(folder / WORD_ENDS)
        self._bytes = _bytes(folder / WORDS)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> Word:
        start = int(self._ends[number - 1]) if number else 0
        term, _, surface = self._bytes[start : int(self._ends[number])].tobytes().decode().partition("\0")
        return Word(term, surface)


def write_vocabulary(folder: Path, words: Iterable[Word]) -> list[str]:
    """Write what `Vocabulary` reads; the names of the files."""
    import numpy as np

    ends = []
    with (folder / WORDS).open("wb") as file:
        for word in words:
            file.write(f"{word.term}\0{word.surface}".encode())
            ends.append(file.tell())
    np.save(folder / WORD_ENDS, np.array(ends, dtype=np.int64))
    return [WORDS, WORD_ENDS]


def mapped(path: Path) -> Array:
    """The array of a .npy file, not read before it is used. Raises SettingsError, MissingExtra."""
    try:
        import numpy as np
    except ImportError:
        raise MissingExtra("numpy", "expander") from None
    try:
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); build the expander again") from None
    return found


def _bytes(path: Path) -> Array:
    import numpy as np

    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}); build the expander again") from None
