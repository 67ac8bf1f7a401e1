"""Pictures of training curves, which the HTML page shows."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from querylift.plugin.errors import SettingsError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG file of a row."""

    row: str
    caption: str
    png: bytes = field(repr=False)

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def read_pictures(curves: Mapping[str, Iterable[Path]]) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """Read the PNG files of each row. Return the pictures, and a sentence for each file that is not a readable PNG."""
    pictures, problems = [], []
    for row, paths in curves.items():
        for path in paths:
            try:
                pictures.append(Picture(row, "/".join(path.parts[-3:]), _read_png(path)))
            except SettingsError as error:
                problems.append(f"a picture of {row} is left out: {error}")
    return tuple(pictures), tuple(problems)


def _read_png(path: Path) -> bytes:
    try:
        png = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); name another file") from None
    if not png.startswith(_PNG_SIGNATURE):
        raise SettingsError(f"{path} is not a PNG file; draw the curves as PNG")
    return png
