"""Where the cluster has a vector field already, it is asked for the nearest documents.

Neither node here has a k-NN plugin: the search computes the product itself, by a script, as a team's own search may.
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
from querylift.index_tools.fast_expander.build import Request, build
from querylift.index_tools.fast_expander.encoder_conversion import write_encoder
from querylift.plugin.errors import EngineError, GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.encoder import Encoder
from querylift.plugin.fast_expander.folder import Shape
from querylift.plugin.generators import factory
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.cluster_expander import SEARCH, filled, read_search, weigh
from querylift.plugin.settings import check
from tests.helpers.expanders import PROPERTIES, TEXTS, create, fill, removed, tiny_encoder

INDEX = "expander-cluster"
SCRIPT = "double s = 1; for (int i = 0; i < 32; i++) s += params.v[i] * doc['v' + i].value; return s;"
KNN = {
    "query": {
        "script_score": {"query": {"match_all": {}}, "script": {"source": SCRIPT, "params": {"v": "{{vector}}"}}},
    }
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("cluster") / "encoder")


@pytest.fixture(scope="module")
def engine(opensearch: str, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The forty documents, each with its vector in 32 fields of a number each."""
    written = tmp_path_factory.mktemp("written")
    read = Encoder(written, write_encoder(encoder, written))
    with Engine(check({"engine": opensearch})) as made:
        removed(made, INDEX)
        create(made, INDEX, PROPERTIES | {f"v{i}": {"type": "float"} for i in range(32)})
        documents = {
            doc_id: {"contents": text} | {f"v{i}": float(x) for i, x in enumerate(read.document(text))}
            for doc_id, text in TEXTS.items()
        }
        fill(made, INDEX, documents)
        yield made
        removed(made, INDEX)


def _search(folder: Path, body: object = KNN) -> Path:
    path = folder / "knn.json"
    path.write_text(json.dumps(body), encoding="utf-8")
    return path


def _build(engine: Engine, folder: Path, encoder: Path, **options: Any) -> Path:
    build(engine, Request(INDEX, "contents", folder, form="cluster", encoder=encoder, **options))
    return folder


def _expanded(folder: Path, engine: Engine, text: str, index: str = INDEX) -> Expansion | None:
    async def main() -> Expansion | None:
        generator = factory.make(f"expander:{folder}", check({"engine": engine.url}))
        await generator.start()
        try:
            return await generator.expand(Ask(text, index))
        finally:
            await generator.close()

    return asyncio.run(main())


@pytest.mark.engine
def test_the_terms_are_those_of_the_documents_that_the_cluster_finds_nearest(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    folder = _build(
        engine, tmp_path / "x", encoder, vector_search=_search(tmp_path), shape=Shape(temperature=0.04, terms=8)
    )
    found = _expanded(folder, engine, "comets")
    assert found is not None
    assert found.field == "contents"
    sky = {"star", "planet", "telescop", "comet", "orbit", "galaxi", "moon", "eclips", "asteroid", "rocket"}
    assert {term.term for term in found.terms} <= sky
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "encoder.onnx", "expander.json", SEARCH, "tokenizer.json",
    ]  # fmt: skip


@pytest.mark.engine
def test_it_finds_what_the_form_neighbours_finds(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    shape = Shape(terms=10, documents=8)
    folder = _build(engine, tmp_path / "x", encoder, vector_search=_search(tmp_path), shape=shape)
    build(engine, Request(INDEX, "contents", tmp_path / "n", encoder=encoder, shape=shape))
    for text in ("comets", "baking bread", "trial lawyers", "ropes"):
        one, other = (_expanded(place, engine, text) for place in (folder, tmp_path / "n"))
        assert one is not None and other is not None
        assert len({t.term for t in one.terms} & {t.term for t in other.terms}) >= 8


@pytest.mark.engine
def test_a_search_on_another_index_and_an_empty_one_are_left_alone(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    folder = _build(engine, tmp_path / "x", encoder, vector_search=_search(tmp_path))
    assert _expanded(folder, engine, "  ") is None
    assert _expanded(folder, engine, "离婚后孩子归谁") is None
    with pytest.raises(GeneratorError, match=f"was built from {INDEX}, and the search is on other"):
        _expanded(folder, engine, "comets", "other")


@pytest.mark.engine
def test_what_cannot_be_is_said_before_it_is_served(engine: Engine, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r'is no search with "\{\{vector\}\}" where the vector belongs'):
        _build(engine, tmp_path / "a", encoder, vector_search=_search(tmp_path, {"query": {"match_all": {}}}))
    with pytest.raises(SettingsError, match="--form cluster and --vector-search FILE belong together"):
        _build(engine, tmp_path / "b", encoder)
    unknown = {"query": {"nearest": {"v": "{{vector}}"}}}
    with pytest.raises(EngineError, match="nearest"):
        _build(engine, tmp_path / "c", encoder, vector_search=_search(tmp_path, unknown))
    nothing = {"query": {"bool": {"must_not": {"match_all": {}}}}, "ext": {}, "stats": ["{{vector}}"]}
    with pytest.raises((SettingsError, EngineError)):
        _build(engine, tmp_path / "d", encoder, vector_search=_search(tmp_path, nothing))
    with pytest.raises(SettingsError, match="cannot be read as JSON"):
        read_search(tmp_path / "absent.json")


def test_the_vector_and_the_words_stand_where_their_placeholders_stood() -> None:
    body = {
        "query": {"hybrid": [{"knn": {"v": {"vector": "{{vector}}"}}}, {"match": {"t": "all of {{query}}"}}]},
        "k": 3,
    }
    assert filled(body, "comets", [0.5, 1.0]) == {
        "query": {"hybrid": [{"knn": {"v": {"vector": [0.5, 1.0]}}}, {"match": {"t": "all of comets"}}]},
        "k": 3,
    }


def test_a_terms_weight_is_the_formula_computed_by_hand() -> None:
    def doc(doc_id: str, terms: dict[str, tuple[int, int]]) -> dict[str, Any]:
        facts = {term: {"term_freq": tf, "doc_freq": df} for term, (tf, df) in terms.items()}
        part = {"terms": facts, "field_statistics": {"doc_count": 100}}
        return {"_index": "i", "_id": doc_id, "term_vectors": {"t": part}}

    vectors = [doc("1", {"tide": (1, 4), "the": (3, 90)}), doc("2", {"tide": (2, 4), "7": (2, 1)})]
    found = weigh(vectors, {("i", "1"): 1.9, ("i", "2"): 1.5}, field="t", temperature=0.4)
    idf = math.log(1 + 96.5 / 4.5)
    assert found == {"tide": pytest.approx(math.sqrt(1 / 4) * idf + math.exp(-1) * math.sqrt(2 / 4) * idf)}
    assert weigh([], {}, field="t", temperature=0.4) == {}
