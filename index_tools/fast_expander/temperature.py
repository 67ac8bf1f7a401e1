"""Chooses how much more the nearest documents count than the others, for an encoder whose cosines are not known.

The cosines of some encoders lie close together: those of multilingual-e5-small between .75 and .95. The temperature that suits
all-MiniLM-L6-v2 would give twenty such documents nearly the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence

from querylift.index_tools.fast_expander.document_parts import DocumentParts
from querylift.plugin.fast_expander.document_vectors import normalize_vectors

_SAMPLE = 1000
_TEMPERATURE_PER_DEVIATION = 0.61
"""0.08 / 0.131: what suits all-MiniLM-L6-v2, over its mean deviation on five collections (docs/log.md)."""
_MIN_TEMPERATURE = 0.001


def measure_temperature(parts: DocumentParts, current_rows: Sequence[Sequence[int]]) -> float:
    """Return 0.61 times the standard deviation of the cosines between documents, rounded to three digits.

    It takes at most 1,000 documents, at even distances, and all pairs of them.
    """
    import numpy as np

    step = max(1, sum(map(len, current_rows)) // _SAMPLE)
    sample = [part.vectors[rows[::step]] for part, rows in zip(parts, current_rows, strict=True) if rows]
    vectors = normalize_vectors(np.concatenate(sample))
    cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    deviation = float(cosines.std()) if len(cosines) else 0.0
    return max(round(_TEMPERATURE_PER_DEVIATION * deviation, 3), _MIN_TEMPERATURE)
