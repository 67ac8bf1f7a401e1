"""Arrays that a stage leaves behind. Each file is replaced whole, so that half a file is never read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from querylift.plugin.files import open_for_replacement
from querylift.trainer.fast_expander.matrix_training import MatrixWeights

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.mapped_files import Array


def save_weights(path: Path, weights: MatrixWeights) -> None:
    """Write the matrix as an npz file."""
    with open_for_replacement(path) as file:
        np.savez(file, rows=weights.rows, bias=weights.bias)


def load_weights(path: Path) -> MatrixWeights:
    """Read a matrix that `save_weights` wrote."""
    with np.load(path, allow_pickle=False) as entries:
        return MatrixWeights(entries["rows"], entries["bias"])


def save_array(path: Path, array: Array) -> None:
    """Write an array as an npy file."""
    with open_for_replacement(path) as file:
        np.save(file, array)


def load_array(path: Path) -> Array:
    """Read an array that `save_array` wrote."""
    return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
