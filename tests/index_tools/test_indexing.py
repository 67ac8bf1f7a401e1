"""A real engine holds all documents of a corpus, or the error names the difference."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from querylift.index_tools.corpora.records import Document
from querylift.index_tools.engine import Engine
from querylift.index_tools.indexing import CONTENTS_FIELD, IndexPlan, build_index, make_index_body
from querylift.plugin.errors import EngineError, SettingsError
from querylift.plugin.settings import parse_settings
from tests.helpers.upstream_stub import Handler, ReceivedRequest, answer_with, run_stub_engine

INDEX = "indexing-test"


@dataclass
class SmallCorpus:
    """A corpus of a few documents in memory."""

    documents: list[Document] = field(
        default_factory=lambda: [Document("a", "Axons", "nerve fibres"), Document("b", "", "")]
    )
    language: str = "en"
    name: str = "few"

    def iter_documents(self) -> Iterator[Document]:
        yield from self.documents


@pytest.fixture
def engine(opensearch: str) -> Iterator[Engine]:
    with Engine(parse_settings({"engine": opensearch})) as client:
        yield client
        if client.has_index(INDEX):
            client.call("DELETE", f"/{INDEX}")


pytestmark = pytest.mark.engine


def test_every_document_is_indexed_and_title_and_text_are_searched_together(engine: Engine) -> None:
    counts: list[int] = []
    assert build_index(engine, SmallCorpus(), IndexPlan(INDEX), progress=counts.append) == 2
    assert counts == [1, 2]
    for words in ("axon", "fibre"):
        answer = engine.call("POST", f"/{INDEX}/_search", {"query": {"match": {CONTENTS_FIELD: words}}})
        assert [hit["_id"] for hit in answer["hits"]["hits"]] == ["a"]


def test_building_again_removes_the_documents_of_the_old_index(engine: Engine) -> None:
    build_index(engine, SmallCorpus(), IndexPlan(INDEX))
    assert build_index(engine, SmallCorpus([Document("c", "", "new")]), IndexPlan(INDEX)) == 1
    assert engine.count_documents(INDEX) == 1


def test_an_index_that_querylift_did_not_build_is_deleted_only_on_request(engine: Engine) -> None:
    engine.call("PUT", f"/{INDEX}", {"settings": {"number_of_replicas": 0}})
    with pytest.raises(SettingsError, match="was not built by querylift; name another, or add --replace"):
        build_index(engine, SmallCorpus(), IndexPlan(INDEX))
    assert build_index(engine, SmallCorpus(), IndexPlan(INDEX, replace=True)) == 2


def test_an_alias_is_never_deleted(engine: Engine) -> None:
    build_index(engine, SmallCorpus(), IndexPlan(INDEX))
    engine.call("PUT", f"/{INDEX}/_alias/indexing-alias")
    with pytest.raises(SettingsError, match="is an alias"):
        build_index(engine, SmallCorpus(), IndexPlan("indexing-alias"))


def test_missing_documents_are_named(engine: Engine) -> None:
    @dataclass
    class RepeatingCorpus(SmallCorpus):
        """Gives one document twice, like a corpus with repeated ids."""

        def iter_documents(self) -> Iterator[Document]:
            yield from [*self.documents, self.documents[0]]

    with pytest.raises(EngineError, match="3 documents were read and 2 are in indexing-test"):
        build_index(engine, RepeatingCorpus(), IndexPlan(INDEX))


def test_bm25_parameters_and_the_analyzer_reach_the_index(engine: Engine) -> None:
    build_index(engine, SmallCorpus(language="zh"), IndexPlan(INDEX, k1=0.9, b=0.4))
    similarity = engine.call("GET", f"/{INDEX}/_settings")[INDEX]["settings"]["index"]["similarity"]["default"]
    assert (similarity["k1"], similarity["b"]) == ("0.9", "0.4")
    tokens = engine.call("POST", f"/{INDEX}/_analyze", {"field": CONTENTS_FIELD, "text": "法律問題"})["tokens"]
    assert [t["token"] for t in tokens] == ["法律", "律問", "問題"]


def test_an_unknown_analyzer_gives_the_engines_own_sentence(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"analyzer \[klingon\]"):
        build_index(engine, SmallCorpus(), IndexPlan(INDEX, analyzer="klingon"))


def test_a_failed_build_keeps_the_old_index(engine: Engine) -> None:
    build_index(engine, SmallCorpus(), IndexPlan(INDEX))
    with pytest.raises(EngineError):
        build_index(engine, SmallCorpus(), IndexPlan(INDEX, analyzer="klingon"))
    with pytest.raises(SettingsError):
        build_index(engine, SmallCorpus(language="xx"), IndexPlan(INDEX))
    assert engine.count_documents(INDEX) == 2


def test_a_language_without_an_analyzer_is_refused() -> None:
    with pytest.raises(SettingsError, match="name one with --analyzer"):
        make_index_body(IndexPlan(INDEX), "xx")


@pytest.mark.parametrize("parameters", [{"k1": -1.0}, {"b": 1.5}])
def test_bm25_parameters_out_of_range_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="use"):
        IndexPlan(INDEX, **parameters)


def test_a_missing_engine_gives_one_sentence() -> None:
    with (
        Engine(parse_settings({"engine": "http://127.0.0.1:9"})) as engine,
        pytest.raises(EngineError, match="querylift node up"),
    ):
        engine.read_info()


def _create_engine_that_refuses_once(status: int) -> tuple[Handler, list[list[str]]]:
    """Return an engine that refuses the second document of the first bulk with `status`, and the ids of each bulk."""
    bulks: list[list[str]] = []

    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        answer: object = {"count": 3}
        if b"/_bulk" in request.start_line:
            rows = [json.loads(line) for line in request.body.splitlines()]
            ids = [row["index"]["_id"] for row in rows if "index" in row]
            refused_ids = ids[1:2] if not bulks else []
            bulks.append(ids)
            answer = {
                "errors": bool(refused_ids),
                "items": [_format_bulk_item(doc_id, status if doc_id in refused_ids else 201) for doc_id in ids],
            }
        status_line = "404 Not Found" if request.start_line.startswith(b"HEAD") else "200 OK"
        kind = b"content-type: application/json\r\n"
        await answer_with(json.dumps(answer).encode(), status=status_line, extra=kind)(request, writer)

    return handle, bulks


def _format_bulk_item(doc_id: str, status: int) -> dict[str, object]:
    error = {"error": {"reason": "no room"}} if status > 201 else {}
    return {"index": {"_index": "i", "_id": doc_id, "status": status} | error}


def _build_small_index_at(port: int, waits_s: list[float]) -> int:
    corpus = SmallCorpus([Document(letter, "", letter) for letter in "abc"])
    with Engine(parse_settings({"engine": f"http://127.0.0.1:{port}"})) as engine:
        return build_index(engine, corpus, IndexPlan(INDEX), sleep=waits_s.append)


@pytest.mark.parametrize("status", [429, 503])
def test_a_document_that_the_engine_had_no_room_for_is_sent_again(status: int) -> None:
    handle, bulks = _create_engine_that_refuses_once(status)
    waits_s: list[float] = []

    async def main() -> int:
        async with run_stub_engine(handle) as stub:
            return await asyncio.to_thread(_build_small_index_at, stub.port, waits_s)

    assert asyncio.run(main()) == 3
    assert bulks == [["a", "b", "c"], ["b"]]
    assert waits_s == ([1.0] if status == 503 else [])  # the client library itself waits after a 429


def test_a_document_that_the_engine_refuses_for_good_is_named() -> None:
    handle, _ = _create_engine_that_refuses_once(400)

    async def main() -> int:
        async with run_stub_engine(handle) as stub:
            return await asyncio.to_thread(_build_small_index_at, stub.port, [])

    with pytest.raises(EngineError, match="document 'b' was refused: no room"):
        asyncio.run(main())
