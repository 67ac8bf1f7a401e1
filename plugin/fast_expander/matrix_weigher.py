"""The form `terms`: one matrix turns a query's vector into a score for every term of the index. It keeps no documents.

The scores are logits. A term's weight is exp(score - best score), to the power of `shape.power`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from querylift.plugin.fast_expander.encoder import open_onnx_session
from querylift.plugin.fast_expander.expander_folder import ExpansionShape
from querylift.plugin.fast_expander.weights import Weights

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector

MATRIX_FILE = "terms.onnx"
INPUT_NAME = "vector"


class MatrixWeigher:
    """Weighs terms with the eight-bit matrix in `folder`. Raises SettingsError, MissingExtra."""

    def __init__(self, folder: Path, shape: ExpansionShape) -> None:
        self._shape = shape
        self._session = open_onnx_session(folder / MATRIX_FILE)

    def weigh(self, vector: Vector) -> Weights:
        """Return the heaviest terms for a query's vector. A matrix knows no documents."""
        import numpy as np

        scores = self._session.run(None, {INPUT_NAME: vector[None]})[0][0]
        count = min(self._shape.terms, len(scores))
        heaviest = np.argpartition(-scores, count - 1)[:count]
        heaviest = heaviest[np.argsort(-scores[heaviest], kind="stable")]
        weights = np.exp((scores[heaviest] - scores[heaviest[0]]) * self._shape.power)
        return Weights(heaviest, weights, [])
