"""The form `cluster` on the engine's own k-NN, in a cluster of two nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.build import BuildRequest, build_expander
from querylift.index_tools.fast_expander.encoder_conversion import write_encoder
from querylift.plugin import dsl
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.encoder import Encoder
from querylift.plugin.fast_expander.expander_folder import ExpansionShape
from querylift.plugin.generators import factory
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.policy import Policy
from querylift.plugin.settings import parse_settings
from tests.helpers.expanders import PROPERTIES, TEXTS, create_index, fill_index, write_tiny_encoder
from tests.helpers.knn_cluster import PluginMissing, run_knn_cluster

pytestmark = pytest.mark.engine
INDEX = "expander-knn"
VECTOR_FIELD = {
    "type": "knn_vector",
    "dimension": 32,
    "method": {"name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"},
}
KNN = {"query": {"knn": {"vector": {"vector": "{{vector}}", "k": 10}}}}
SKY = {"star", "planet", "telescop", "comet", "orbit", "galaxi", "moon", "eclips", "asteroid", "rocket"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("knn") / "encoder")


@pytest.fixture(scope="module")
def engine(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A cluster with the forty documents and their vectors, in four shards on two nodes."""
    folder = tmp_path_factory.mktemp("converted")
    loaded_encoder = Encoder(folder, write_encoder(encoder, folder))
    try:
        cluster = run_knn_cluster(tmp_path_factory.mktemp("cluster"))
        url = cluster.__enter__()
    except PluginMissing as error:
        pytest.skip(str(error))
    with Engine(parse_settings({"engine": url})) as engine:
        settings = {"index.knn": True, "number_of_shards": 4}
        create_index(engine, INDEX, PROPERTIES | {"vector": VECTOR_FIELD}, **settings)
        fill_index(
            engine,
            INDEX,
            {
                doc_id: {"contents": text, "vector": loaded_encoder.encode_document(text).tolist()}
                for doc_id, text in TEXTS.items()
            },
        )
        yield engine
    cluster.__exit__(None, None, None)


def expand(folder: Path, engine: Engine, text: str) -> Expansion:
    async def main() -> Expansion | None:
        generator = factory.make_generator(f"expander:{folder}", parse_settings({"engine": engine.url}))
        await generator.start()
        try:
            return await generator.expand(ExpansionRequest(text, INDEX))
        finally:
            await generator.close()

    expansion = asyncio.run(main())
    assert expansion is not None
    return expansion


def test_the_engines_own_vectors_give_terms_and_documents_from_both_nodes(
    engine: Engine, encoder: Path, tmp_path: Path
) -> None:
    shards = engine.call("GET", f"/_cat/shards/{INDEX}", params={"format": "json", "h": "id"})
    assert len({shard["id"] for shard in shards}) == 2
    (tmp_path / "knn.json").write_text(json.dumps(KNN), encoding="utf-8")
    shape = ExpansionShape(temperature=0.04, terms=8, documents=10)
    build_expander(
        engine,
        BuildRequest(
            INDEX,
            "contents",
            tmp_path / "out",
            form="cluster",
            encoder=encoder,
            vector_search=tmp_path / "knn.json",
            shape=shape,
        ),
    )
    expansion = expand(tmp_path / "out", engine, "comets")
    assert {term.term for term in expansion.terms} <= SKY
    assert {document.doc_id.partition("-")[0] for document in expansion.documents[:5]} == {"sky"}
    body: dict[str, Any] = {"query": {"match": {"contents": "comets"}}, "size": 40}
    policy = Policy(mode="widen")
    rewritten = dsl.add_expansion(body, dsl.find_user_query(body, policy), expansion, policy)
    plain_hits, hits = (
        engine.call("POST", f"/{INDEX}/_search", search)["hits"]["hits"] for search in (body, rewritten)
    )
    assert len(hits) > len(plain_hits) == 4
    assert {hit["_id"].partition("-")[0] for hit in hits[:8]} == {"sky"}
