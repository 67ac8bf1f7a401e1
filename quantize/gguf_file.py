"""Opens a GGUF file with the reader of the gguf package, three times as fast when its vocabulary is large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


class _PlainArrayReader(gguf.GGUFReader):  # type: ignore[misc]  # gguf has no types here
    """Reads strings out of a plain array.

    The package reads them out of a memory map, which makes an object of its own class for each of the 100,000 strings of
    a vocabulary. The plain array is a view of the same memory map.
    """

    data: np.ndarray[Any, np.dtype[np.uint8]]

    def _build_fields(self, offs: int, count: int) -> int:
        self.data = self.data.view(np.ndarray)
        return int(super()._build_fields(offs, count))


def open_gguf_reader(path: Path) -> gguf.GGUFReader:
    """Return a reader of the metadata and tensors in `path`.

    A damaged file raises ValueError, LookupError, TypeError or OverflowError.
    """
    return _PlainArrayReader(path)
