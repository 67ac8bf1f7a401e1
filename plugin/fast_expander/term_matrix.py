"""The form `terms`: no documents, one matrix from a query's vector to a score for every term of the index.

The scores are logits: a term's weight is exp(score), to the power of `shape.power`, relative to the heaviest one's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from querylift.plugin.fast_expander.encoder import open_session
from querylift.plugin.fast_expander.folder import Shape

if TYPE_CHECKING:
    from querylift.plugin.fast_expander.encoder import Vector
    from querylift.plugin.fast_expander.vocabulary import Array

HEAD = "terms.onnx"
INPUT = "vector"


class Matrix:
    """The matrix in `folder`, in eight bits. Raises SettingsError where it is none, MissingExtra."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self._shape = shape
        self._session = open_session(folder / HEAD)

    def weigh(self, vector: Vector) -> tuple[Array, Array]:
        """The heaviest terms' numbers, heaviest first, and their weights."""
        import numpy as np

        scores = self._session.run(None, {INPUT: vector[None]})[0][0]
        count = min(self._shape.terms, len(scores))
        best = np.argpartition(-scores, count - 1)[:count]
        best = best[np.argsort(-scores[best], kind="stable")]
        return best, np.exp((scores[best] - scores[best[0]]) * self._shape.power)
