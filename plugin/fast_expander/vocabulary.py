"""The expander's terms and their surface words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from querylift.plugin.fast_expander.mapped_files import MappedTexts, write_texts

WORDS_NAME = "words"


class Word(NamedTuple):
    """A term of the index, and its surface word; "" when none is known."""

    term: str
    surface: str


class Vocabulary:
    """The terms by number. Raises SettingsError, MissingExtra when its files cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._texts = MappedTexts(folder, WORDS_NAME)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> Word:
        term, _, surface = self._texts[number].partition("\0")
        return Word(term, surface)


def write_vocabulary(folder: Path, words: Iterable[Word]) -> list[str]:
    """Write the files that `Vocabulary` reads. Return their names."""
    return write_texts(folder, WORDS_NAME, (f"{word.term}\0{word.surface}" for word in words))
