"""How much each column of a weight matters: the mean square of what the model feeds into it, over the queries' own passages.

llama.cpp takes these numbers as an importance matrix and rounds the columns that matter less first. They are kept in the
GGUF file that its own tools read and write: for each weight the sum of squares of every column, and of how many tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np

from querylift.index_tools.corpora.trec_files import read_jsonl
from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import PROMPT_VERSION, prompt
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

MOST_TOKENS = 256
"""Of one row, as many as a served sequence holds by default; what is longer is cut."""
_SUMS, _COUNTS = ".in_sum2", ".counts"
_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class Sums:
    """The sum of squares of each column by weight, as float64, and over how many tokens, of `rows` texts."""

    squares: Mapping[str, Array]
    counts: Mapping[str, int]
    rows: int


def calibration_texts(path: Path, *, rows: int) -> list[str]:
    """Prompt and passage of `rows` lines, from all over the file; of all where there are fewer.

    A line is {"query", "text"} and whatever else, as candidates and tables have it. Raises DataError, SettingsError.
    """
    texts = list(_texts(path))
    if not texts:
        raise SettingsError(f"{path} has no passage to calibrate on; name JSON lines with query and text")
    count = min(rows, len(texts))
    return [texts[number * len(texts) // count] for number in range(count)]


def _texts(path: Path) -> Iterator[str]:
    for number, row in read_jsonl(path):
        query, text = row.get("query"), row.get("text")
        for name, value in (("query", query), ("text", text)):
            if not isinstance(value, str):
                raise DataError(path, number, f"{name!r} is {value!r}; write it as a text")
        if str(text).strip():
            yield prompt(str(query)) + str(text)


def write_sums(path: Path, sums: Sums) -> None:
    """Write the file. Raises OSError."""
    writer = gguf.GGUFWriter(path, "")
    try:
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["querylift"])
        writer.add_uint32("imatrix.chunk_count", sums.rows)
        writer.add_uint32("imatrix.chunk_size", MOST_TOKENS)
        writer.add_string(PROMPT_VERSION_KEY, PROMPT_VERSION)
        for name, squares in sums.squares.items():
            writer.add_tensor(name + _SUMS, squares.astype(np.float32)[np.newaxis])
            writer.add_tensor(name + _COUNTS, np.full((1, 1), sums.counts[name], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_means(path: Path) -> dict[str, Array]:
    """The mean square of each column by weight, as float32; none of them 0, by which llama.cpp divides."""
    tensors = {tensor.name: np.array(tensor.data, np.float32).ravel() for tensor in gguf.GGUFReader(path).tensors}
    return {
        name.removesuffix(_SUMS): _above_0(sums / tensors[name.removesuffix(_SUMS) + _COUNTS])
        for name, sums in tensors.items()
        if name.endswith(_SUMS)
    }


def _above_0(means: Array) -> Array:
    least = _LEAST * means.mean(dtype=np.float64) or 1.0
    return np.maximum(means, np.float32(least))
