"""The temperature of an expander follows the spread of its encoder's cosines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from querylift.index_tools.fast_expander.document_parts import CountedTerms, DocumentPart, DocumentParts
from querylift.index_tools.fast_expander.temperature import measure_temperature
from querylift.plugin.fast_expander.document_vectors import normalize_vectors, quantize_to_eight_bits


def write_part(folder: Path, vectors: np.ndarray) -> DocumentParts:
    parts = DocumentParts(folder, {})
    count = len(vectors)
    numbers = np.zeros(count, np.uint32)
    no_terms = CountedTerms(
        ends=np.zeros(count, np.int64), terms=numbers[:0], counts=numbers[:0].astype(np.uint16), lengths=numbers,
        vocabulary=[], surfaces={},
    )  # fmt: skip
    keys = [str(number) for number in range(count)]
    part = DocumentPart(keys, numbers.astype(np.uint64), quantize_to_eight_bits(vectors), [no_terms])
    parts.add_part(part)
    return parts


@pytest.mark.parametrize(("shared", "mean_cosine"), [(0.0, 0.0), (1.0, 0.5), (2.0, 0.8)])
def test_it_is_0_61_deviations_of_the_cosines_of_all_pairs(tmp_path: Path, shared: float, mean_cosine: float) -> None:
    random = np.random.default_rng(1)
    common = random.standard_normal(64)
    vectors = normalize_vectors(random.standard_normal((200, 64)) + shared * common)
    cosines = (vectors @ vectors.T)[np.triu_indices(200, 1)]
    assert cosines.mean() == pytest.approx(mean_cosine, abs=0.1)
    temperature = measure_temperature(write_part(tmp_path, vectors), [list(range(200))])
    assert temperature == pytest.approx(0.61 * cosines.std(), abs=0.001)


def test_documents_that_are_no_longer_in_the_index_do_not_count(tmp_path: Path) -> None:
    vectors = np.concatenate([np.eye(8, dtype="f4"), np.ones((8, 8), "f4")])
    parts = write_part(tmp_path, vectors)
    assert measure_temperature(parts, [list(range(8))]) == 0.001
    assert measure_temperature(parts, [list(range(16))]) > 0.1
    assert measure_temperature(parts, [[3]]) == 0.001
