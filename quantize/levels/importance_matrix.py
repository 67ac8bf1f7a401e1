"""Importance matrix: the mean square of the input that each column of a weight receives on calibration texts.

llama.cpp uses it to round unimportant columns more coarsely. The file has the GGUF layout of llama.cpp's own tools:
for each weight, the sum of squares of every column and the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np

from querylift.index_tools.corpora.json_rows import read_jsonl
from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.expansion import PROMPT_VERSION, build_prompt
from querylift.plugin.generators.llama.model_file import PROMPT_VERSION_KEY

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

MAX_TOKENS_PER_TEXT = 256
"""Longer texts are cut. A served sequence holds as many tokens by default."""
_SQUARES_SUFFIX, _COUNTS_SUFFIX = ".in_sum2", ".counts"
_SMALLEST_SHARE = 1e-6
"""Of the average column: a mean square below this share is raised to it."""


@dataclass(frozen=True, slots=True)
class ActivationSums:
    """Sums over the inputs of each weight: `squares` per column in float64, `counts` of tokens, both by weight name."""

    squares: Mapping[str, Array]
    counts: Mapping[str, int]
    texts: int


def read_calibration_texts(path: Path, *, rows: int) -> list[str]:
    """Return prompt and passage of `rows` lines, spread evenly over the file. Raises DataError, SettingsError.

    A line is a JSON object with "query" and "text"; other keys are ignored. A shorter file gives all its lines.
    """
    texts = list(_read_texts(path))
    if not texts:
        raise SettingsError(f"{path} has no passage to calibrate with; name JSON lines with query and text")
    count = min(rows, len(texts))
    return [texts[number * len(texts) // count] for number in range(count)]


def _read_texts(path: Path) -> Iterator[str]:
    for number, row in read_jsonl(path):
        query, passage = row.get("query"), row.get("text")
        for name, value in (("query", query), ("text", passage)):
            if not isinstance(value, str):
                raise DataError(path, number, f"{name!r} is {value!r}; write a text")
        if str(passage).strip():
            yield build_prompt(str(query)) + str(passage)


def write_importance_matrix(path: Path, sums: ActivationSums) -> None:
    """Write the importance matrix as a GGUF file. Raises OSError."""
    writer = gguf.GGUFWriter(path, "")
    try:
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["querylift"])
        writer.add_uint32("imatrix.chunk_count", sums.texts)
        writer.add_uint32("imatrix.chunk_size", MAX_TOKENS_PER_TEXT)
        writer.add_string(PROMPT_VERSION_KEY, PROMPT_VERSION)
        for name, squares in sums.squares.items():
            writer.add_tensor(name + _SQUARES_SUFFIX, squares.astype(np.float32)[np.newaxis])
            writer.add_tensor(name + _COUNTS_SUFFIX, np.full((1, 1), sums.counts[name], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_mean_squares(path: Path) -> dict[str, Array]:
    """Return the mean square of each column as float32, by weight name. All are above 0, as llama.cpp divides by them."""
    tensors = {tensor.name: np.array(tensor.data, np.float32).ravel() for tensor in gguf.GGUFReader(path).tensors}
    return {
        name.removesuffix(_SQUARES_SUFFIX): _clamp_above_zero(
            sums / tensors[name.removesuffix(_SQUARES_SUFFIX) + _COUNTS_SUFFIX]
        )
        for name, sums in tensors.items()
        if name.endswith(_SQUARES_SUFFIX)
    }


def _clamp_above_zero(mean_squares: Array) -> Array:
    smallest = _SMALLEST_SHARE * mean_squares.mean(dtype=np.float64) or 1.0
    return np.maximum(mean_squares, np.float32(smallest))
