"""The form `terms`: one matrix instead of documents, on both engines; and the form `neighbours` on the older one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.build import BuildRequest, BuildResult, build_expander
from querylift.index_tools.fast_expander.document_parts import LOCK_FILE, DocumentParts
from querylift.index_tools.fast_expander.neighbours_form import TermStatistics
from querylift.index_tools.fast_expander.terms_form import (
    calculate_mean_vectors,
    load_weighted_documents,
    write_matrix,
)
from querylift.plugin.errors import SettingsError
from querylift.plugin.fast_expander.document_vectors import normalize_vectors
from querylift.plugin.fast_expander.expander_folder import ExpansionShape
from querylift.plugin.fast_expander.matrix_weigher import MATRIX_FILE, MatrixWeigher
from querylift.plugin.files import hold_lock
from querylift.plugin.generators.fast_expander import open_expander_model
from querylift.plugin.settings import parse_settings
from tests.helpers.expanders import TEXTS, TOPICS, create_index, fill_index, remove_indices, write_tiny_encoder

pytestmark = pytest.mark.engine
INDEX = "expander-terms"
SEA = {"sail", "boat", "harbour", "wave", "anchor", "sailor", "tide", "rope", "mast", "fish"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("terms") / "encoder")


@pytest.fixture(params=["opensearch", "opensearch2"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": request.getfixturevalue(request.param)})) as connected_engine:
        remove_indices(connected_engine, INDEX)
        create_index(connected_engine, INDEX)
        fill_index(connected_engine, INDEX, TEXTS)
        yield connected_engine
        remove_indices(connected_engine, INDEX)


def build_form(engine: Engine, folder: Path, encoder: Path, form: Any) -> BuildResult:
    return build_expander(engine, BuildRequest(INDEX, "contents", folder, form=form, encoder=encoder))


def test_a_query_of_one_topic_gets_the_terms_of_that_topic(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    for form in ("terms", "neighbours"):
        built = build_form(engine, tmp_path / form, encoder, form)
        about, parts = open_expander_model(tmp_path / form)
        assert (about.form, built.encoded, about.terms) == (form, 40, 40)
        expansion = parts.expand("harbour boats")
        assert expansion is not None
        assert {term.term for term in expansion.terms[:8]} <= SEA
        assert all(a.weight >= b.weight for a, b in zip(expansion.terms, expansion.terms[1:], strict=False))
    assert not list((tmp_path / "terms").glob("documents.*"))


def test_one_form_is_built_from_the_parts_of_the_other(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    build_form(engine, tmp_path / "both", encoder, "neighbours")
    assert build_form(engine, tmp_path / "both", encoder, "terms").encoded == 0
    assert open_expander_model(tmp_path / "both")[0].form == "terms"


def test_a_row_is_the_weighted_mean_vector_of_the_terms_documents(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    build_form(engine, tmp_path / "x", encoder, "terms")
    parts = DocumentParts.open_existing(tmp_path / "x")
    statistics = TermStatistics(parts, parts.read_current_rows())
    documents = load_weighted_documents(parts, parts.read_current_rows(), statistics)
    boat = statistics.numbers["boat"]
    summed = np.zeros(32)
    for number, end in enumerate(documents.ends):
        span = slice(int(documents.ends[number - 1]) if number else 0, int(end))
        for term, weight in zip(documents.terms[span], documents.weights[span], strict=True):
            if term == boat:
                summed += weight * documents.vectors[number] / np.linalg.norm(documents.vectors[number].astype(float))
    assert np.allclose(calculate_mean_vectors(documents)[boat], summed / np.linalg.norm(summed), atol=1e-5)


def test_two_builds_of_one_folder_do_not_mix(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    build_form(engine, folder, encoder, "terms")
    with (
        hold_lock(folder / LOCK_FILE),
        pytest.raises(SettingsError, match="is being written by another process; wait for it to end"),
    ):
        build_form(engine, folder, encoder, "terms")
    assert not (folder / LOCK_FILE).exists()
    assert build_form(engine, folder, encoder, "terms").encoded == 0


def test_the_eight_bit_matrix_ranks_as_the_whole_one(tmp_path: Path) -> None:
    """Scores lie within 2% of their spread, and the heaviest term is the same for nine queries of ten."""
    draw = np.random.default_rng(3)
    rows, bias = draw.standard_normal((500, 32)).astype("f4"), draw.standard_normal(500).astype("f4")
    write_matrix(tmp_path / MATRIX_FILE, rows, bias)
    matrix, same = MatrixWeigher(tmp_path, ExpansionShape(terms=10, power=0.5)), 0
    for _ in range(100):
        vector = normalize_vectors(draw.standard_normal(32).astype("f4"))
        scores = rows @ vector + bias
        weighed = matrix.weigh(vector)
        numbers, weights = weighed.terms, weighed.term_weights
        assert len(numbers) == 10
        assert weights[0] == 1
        assert np.allclose(np.log(weights) * 2, scores[numbers] - scores[numbers[0]], atol=0.04 * float(np.ptp(scores)))
        same += int(numbers[0]) == int(scores.argmax())
    assert same >= 90


def test_a_matrix_of_few_terms_gives_those_it_has(tmp_path: Path) -> None:
    write_matrix(tmp_path / MATRIX_FILE, np.eye(3, 8, dtype="f4"), np.zeros(3, dtype="f4"))
    vector = np.array([1, 0, 0, 0, 0, 0, 0, 0], dtype="f4")
    numbers = MatrixWeigher(tmp_path, ExpansionShape(terms=40)).weigh(vector).terms
    assert numbers[0] == 0
    assert sorted(numbers.tolist()) == [0, 1, 2]


def test_a_torn_matrix_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / MATRIX_FILE).write_bytes(b"nothing")
    with pytest.raises(SettingsError, match=r"terms\.onnx cannot be read as an encoder .*; build the expander again"):
        MatrixWeigher(tmp_path, ExpansionShape())


def test_the_topics_are_apart_for_the_encoder(encoder: Path) -> None:
    """What the other tests rest on."""
    assert {len(words) for words in TOPICS.values()} == {10}
