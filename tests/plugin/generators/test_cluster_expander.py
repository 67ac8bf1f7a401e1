"""The form `cluster`: the engine's own vector field finds the nearest documents.

The test engines have no k-NN plugin. The search computes the inner product in a script, as a team's own search may.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.build import BuildRequest, build_expander
from querylift.index_tools.fast_expander.encoder_conversion import write_encoder
from querylift.plugin.errors import EngineError, GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.encoder import Encoder
from querylift.plugin.fast_expander.expander_folder import ExpansionShape
from querylift.plugin.generators import factory
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.cluster_expander import SEARCH_FILE, fill_template, read_search_template, weigh_terms
from querylift.plugin.settings import parse_settings
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings
from tests.helpers.embeddings_server import run_embeddings_server
from tests.helpers.expanders import PROPERTIES, TEXTS, create_index, fill_index, remove_indices, write_tiny_encoder

INDEX = "expander-cluster"
SCRIPT = "double s = 1; for (int i = 0; i < 32; i++) s += params.v[i] * doc['v' + i].value; return s;"
KNN = {
    "query": {
        "script_score": {"query": {"match_all": {}}, "script": {"source": SCRIPT, "params": {"v": "{{vector}}"}}},
    }
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("cluster") / "encoder")


@pytest.fixture(scope="module")
def engine(opensearch: str, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with the forty documents. Each one keeps its vector in 32 numeric fields."""
    folder = tmp_path_factory.mktemp("converted")
    loaded_encoder = Encoder(folder, write_encoder(encoder, folder))
    with Engine(parse_settings({"engine": opensearch})) as engine:
        remove_indices(engine, INDEX)
        create_index(engine, INDEX, PROPERTIES | {f"v{i}": {"type": "float"} for i in range(32)})
        documents = {
            doc_id: {"contents": text} | {f"v{i}": float(x) for i, x in enumerate(loaded_encoder.encode_document(text))}
            for doc_id, text in TEXTS.items()
        }
        fill_index(engine, INDEX, documents)
        yield engine
        remove_indices(engine, INDEX)


def _write_search(folder: Path, body: object = KNN) -> Path:
    path = folder / "knn.json"
    path.write_text(json.dumps(body), encoding="utf-8")
    return path


def _build_expander(engine: Engine, folder: Path, encoder: Path, **options: Any) -> Path:
    build_expander(engine, BuildRequest(INDEX, "contents", folder, form="cluster", encoder=encoder, **options))
    return folder


def _expand_text(folder: Path, engine: Engine, text: str, index: str = INDEX) -> Expansion | None:
    async def main() -> Expansion | None:
        generator = factory.make_generator(f"expander:{folder}", parse_settings({"engine": engine.url}))
        await generator.start()
        try:
            return await generator.expand(ExpansionRequest(text, index))
        finally:
            await generator.close()

    return asyncio.run(main())


@pytest.mark.engine
def test_the_terms_come_from_the_documents_that_the_engine_finds_nearest(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    folder = _build_expander(
        engine,
        tmp_path / "x",
        encoder,
        vector_search=_write_search(tmp_path),
        shape=ExpansionShape(temperature=0.04, terms=8),
    )
    expansion = _expand_text(folder, engine, "comets")
    assert expansion is not None
    assert expansion.field == "contents"
    sky = {"star", "planet", "telescop", "comet", "orbit", "galaxi", "moon", "eclips", "asteroid", "rocket"}
    assert {term.term for term in expansion.terms} <= sky
    assert {document.doc_id for document in expansion.documents} == {f"sky-{i}" for i in range(10)}
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "encoder.onnx", "expander.json", SEARCH_FILE, "tokenizer.json",
    ]  # fmt: skip


@pytest.mark.engine
def test_the_endpoint_that_made_the_vectors_of_the_field_encodes_queries_too(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    loaded_encoder = Encoder(tmp_path, write_encoder(encoder, tmp_path))
    search, shape = _write_search(tmp_path), ExpansionShape(temperature=0.04, terms=8)
    local = _build_expander(engine, tmp_path / "local", encoder, vector_search=search, shape=shape)
    with run_embeddings_server(loaded_encoder) as server:
        request = BuildRequest(
            INDEX, "contents", tmp_path / "x", form="cluster", encoder=server.url, vector_search=search, shape=shape,
            endpoint=EncoderEndpointSettings(model="tiny"),
        )  # fmt: skip
        build_expander(engine, request)
        assert _expand_text(tmp_path / "x", engine, "comets") == _expand_text(local, engine, "comets") is not None
    assert sorted(path.name for path in (tmp_path / "x").iterdir() if not path.name.startswith(".")) == [
        "expander.json", SEARCH_FILE,
    ]  # fmt: skip


@pytest.mark.engine
def test_it_finds_most_terms_that_the_form_neighbours_finds(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    shape = ExpansionShape(terms=10, documents=8)
    folder = _build_expander(engine, tmp_path / "x", encoder, vector_search=_write_search(tmp_path), shape=shape)
    build_expander(engine, BuildRequest(INDEX, "contents", tmp_path / "n", encoder=encoder, shape=shape))
    for text in ("comets", "baking bread", "trial lawyers", "ropes"):
        cluster, neighbours = (_expand_text(place, engine, text) for place in (folder, tmp_path / "n"))
        assert cluster is not None and neighbours is not None
        common_terms = {term.term for term in cluster.terms} & {term.term for term in neighbours.terms}
        assert len(common_terms) >= 8


@pytest.mark.engine
def test_an_unreadable_query_has_no_terms_and_a_search_on_another_index_is_an_error(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    folder = _build_expander(engine, tmp_path / "x", encoder, vector_search=_write_search(tmp_path))
    assert _expand_text(folder, engine, "  ") is None
    assert _expand_text(folder, engine, "离婚后孩子归谁") is None
    with pytest.raises(GeneratorError, match=f"was built from {INDEX}, but the search is on other"):
        _expand_text(folder, engine, "comets", "other")


@pytest.mark.engine
def test_a_search_that_cannot_work_is_an_error_when_the_expander_is_built(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        SettingsError, match=r'is not a search with a vector; put "\{\{vector\}\}" where the vector belongs'
    ):
        _build_expander(
            engine, tmp_path / "a", encoder, vector_search=_write_search(tmp_path, {"query": {"match_all": {}}})
        )
    with pytest.raises(SettingsError, match="--form cluster and --vector-search FILE belong together"):
        _build_expander(engine, tmp_path / "b", encoder)
    unknown_query = {"query": {"nearest": {"v": "{{vector}}"}}}
    with pytest.raises(EngineError, match="nearest"):
        _build_expander(engine, tmp_path / "c", encoder, vector_search=_write_search(tmp_path, unknown_query))
    search_without_hits = {"query": {"bool": {"must_not": {"match_all": {}}}}, "ext": {}, "stats": ["{{vector}}"]}
    with pytest.raises((SettingsError, EngineError)):
        _build_expander(engine, tmp_path / "d", encoder, vector_search=_write_search(tmp_path, search_without_hits))
    with pytest.raises(SettingsError, match="cannot be read as JSON"):
        read_search_template(tmp_path / "absent.json")


def test_the_vector_and_the_query_replace_their_placeholders() -> None:
    body = {
        "query": {"hybrid": [{"knn": {"v": {"vector": "{{vector}}"}}}, {"match": {"t": "all of {{query}}"}}]},
        "k": 3,
    }
    assert fill_template(body, "comets", [0.5, 1.0]) == {
        "query": {"hybrid": [{"knn": {"v": {"vector": [0.5, 1.0]}}}, {"match": {"t": "all of comets"}}]},
        "k": 3,
    }


def test_the_weight_of_a_term_agrees_with_the_formula_computed_by_hand() -> None:
    def make_term_vectors(doc_id: str, terms: dict[str, tuple[int, int]]) -> dict[str, Any]:
        statistics = {term: {"term_freq": tf, "doc_freq": df} for term, (tf, df) in terms.items()}
        field_vector = {"terms": statistics, "field_statistics": {"doc_count": 100}}
        return {"_index": "i", "_id": doc_id, "term_vectors": {"t": field_vector}}

    vectors = [
        make_term_vectors("1", {"tide": (1, 4), "the": (3, 90)}),
        make_term_vectors("2", {"tide": (2, 4), "7": (2, 1)}),
    ]
    weights = weigh_terms(vectors, {("i", "1"): 1.9, ("i", "2"): 1.5}, field="t", temperature=0.4)
    idf = math.log(1 + 96.5 / 4.5)
    assert weights == {"tide": pytest.approx(math.sqrt(1 / 4) * idf + math.exp(-1) * math.sqrt(2 / 4) * idf)}
    assert weigh_terms([], {}, field="t", temperature=0.4) == {}
