"""The generators that need no model, and the factory that makes every generator."""

import asyncio
import gzip
import json
from pathlib import Path

import pytest
from aiohttp import web

from querylift.plugin.errors import DataError, GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators import factory
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.engine_reader import EngineReader
from querylift.plugin.generators.http import HttpGenerator
from querylift.plugin.generators.llama.model_file import find_packaged_model, find_shipped_adapter
from querylift.plugin.generators.none import NoneGenerator
from querylift.plugin.generators.rm3 import estimate_relevance_model
from querylift.plugin.generators.table import TableGenerator, build_table_rows
from querylift.plugin.settings import Settings, parse_settings
from tests.helpers.llama_server import run_llama_server
from tests.helpers.upstream_stub import answer_with, run_stub_engine


def _write_table(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


async def _look_up(path: Path, *texts: str) -> list[Expansion | None]:
    table = TableGenerator(path)
    await table.start()
    return [await table.expand(ExpansionRequest(text)) for text in texts]


def test_a_table_finds_a_query_whatever_its_case_and_spaces(tmp_path: Path) -> None:
    path = _write_table(tmp_path, {"query": "Download a page", "text": "urlopen fetches"})
    expansions = asyncio.run(_look_up(path, "download  A page ", "another"))
    assert expansions == [Expansion(text="urlopen fetches"), None]


def test_a_table_reads_gzip_weighted_terms_and_ignores_other_keys(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl.gz"
    row = {"query": "axon", "field": "body", "terms": {"neuron": 2, "cell": 1}, "model": "x"}
    path.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n\n"))
    (expansion,) = asyncio.run(_look_up(path, "axon"))
    assert expansion is not None
    assert [(term.term, term.weight) for term in expansion.terms] == [("neuron", 2.0), ("cell", 1.0)]


def test_the_first_line_of_a_query_counts_and_the_identity_depends_on_the_content(tmp_path: Path) -> None:
    async def read_identity(text: str) -> str:
        table = TableGenerator(_write_table(tmp_path, {"query": "q", "text": text}, {"query": "Q", "text": "second"}))
        await table.start()
        assert await table.expand(ExpansionRequest("q")) == Expansion(text=text)
        return table.identity

    identities = [asyncio.run(read_identity(text)) for text in ("first", "first", "other")]
    assert identities[0] == identities[1] != identities[2]


def test_a_teachers_prose_is_cleaned(tmp_path: Path) -> None:
    text = "Certainly! Here is a passage that answers the query:\n\n**Urlopen** opens a page.\n\nA page is a page."
    (expansion,) = asyncio.run(_look_up(_write_table(tmp_path, {"query": "q", "text": text}), "q"))
    assert expansion == Expansion(text="Urlopen opens a page is")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", r"table\.jsonl:2: this line is not JSON"),
        ("[1]", r"table\.jsonl:2: this line is a JSON list"),
        ('{"text": "words"}', r'table\.jsonl:2: this line has no "query"'),
        ('{"query": "q"}', r'table\.jsonl:2: the expansion has neither "text" nor "field" and "terms"'),
        ('{"query": "q", "field": "f", "terms": {"a": 0}}', "give at least one a weight above 0"),
    ],
)
def test_the_error_for_a_broken_line_names_the_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text('{"query": "fine", "text": "words"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        asyncio.run(_look_up(path, "fine"))


def test_the_error_for_a_missing_table_names_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.jsonl' cannot be read: No such file or directory"):
        asyncio.run(_look_up(tmp_path / "gone.jsonl", "q"))


def test_a_table_is_built_from_the_rows_of_one_model(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "text": "small model", "model": "7B", "params": {"mode": "zs"}},
        {"query": "q", "text": "chain of thought", "model": "72B", "params": {"mode": "cot"}},
        {"query": "q", "text": "large model", "model": "72B", "params": {"mode": "zs"}},
        {"query": "Q ", "text": "a second sample", "model": "72B", "params": {"mode": "zs"}},
        {"query": "r", "text": "...", "model": "72B"},
    ]
    table_rows = list(build_table_rows(_write_table(tmp_path, *rows), where={"model": "72B", "params.mode": "zs"}))
    assert table_rows == [{"query": "q", "text": "large model"}]


def test_a_table_that_is_built_from_weighted_terms_keeps_them(tmp_path: Path) -> None:
    row = {"query": "axon", "field": "body", "terms": {"neuron": 2.0}, "surfaces": {"neuron": "neurons"}}
    assert list(build_table_rows(_write_table(tmp_path, row), where={})) == [row]


def test_rm3_weights_are_the_sum_of_term_share_times_score_share() -> None:
    def make_term_vector(**counts: int) -> dict[str, object]:
        return {
            "terms": {term: {"term_freq": count, "doc_freq": 1} for term, count in counts.items()},
            "field_statistics": {"doc_count": 50},
        }

    vectors = [
        {"_id": "1", "term_vectors": {"text": make_term_vector(axon=3, cell=1)}},
        {"_id": "2", "term_vectors": {"text": make_term_vector(axon=1, nerve=1)}},
    ]
    weights = estimate_relevance_model(vectors, {("", "1"): 6.0, ("", "2"): 2.0}, field="text")
    assert weights == {
        "axon": pytest.approx(3 / 4 * 6 / 8 + 1 / 2 * 2 / 8),
        "cell": pytest.approx(1 / 4 * 6 / 8),
        "nerve": pytest.approx(1 / 2 * 2 / 8),
    }


def test_rm3_leaves_out_numbers_single_characters_and_common_terms() -> None:
    terms = {
        "2019": {"term_freq": 1, "doc_freq": 1},
        "x": {"term_freq": 1, "doc_freq": 1},
        "common": {"term_freq": 1, "doc_freq": 11},
        "rare": {"term_freq": 1, "doc_freq": 10},
    }
    vectors = [{"_id": "1", "term_vectors": {"text": {"terms": terms, "field_statistics": {"doc_count": 100}}}}]
    assert list(estimate_relevance_model(vectors, {("", "1"): 1.0}, field="text")) == ["rare"]


def test_rm3_tells_documents_of_two_indices_with_the_same_id_apart() -> None:
    def make_vector(index: str, term: str) -> dict[str, object]:
        field_vector = {"terms": {term: {"term_freq": 1, "doc_freq": 1}}, "field_statistics": {"doc_count": 100}}
        return {"_index": index, "_id": "1", "term_vectors": {"text": field_vector}}

    vectors = [make_vector("a", "axon"), make_vector("b", "boat")]
    weights = estimate_relevance_model(vectors, {("a", "1"): 3.0, ("b", "1"): 1.0}, field="text")
    assert weights == {"axon": 0.75, "boat": 0.25}


def test_rm3_without_documents_or_terms_has_no_weights() -> None:
    assert estimate_relevance_model([], {}, field="text") == {}
    assert estimate_relevance_model([{"_id": "1"}], {("", "1"): 1.0}, field="text") == {}


@pytest.mark.parametrize(
    ("name", "class_name"),
    [("none", "NoneGenerator"), ("table:f.jsonl", "TableGenerator"), ("feedback", "Rm3Generator"),
     ("feedback:body", "Rm3Generator"), ("http://127.0.0.1:1/v1", "HttpGenerator"),
     ("https://127.0.0.1:1/v1", "HttpGenerator"), ("http:http://127.0.0.1:1/v1", "HttpGenerator"),
     ("llama:m.gguf", "LlamaGenerator"), ("llama", "LlamaGenerator"), ("llama:base", "LlamaGenerator")],
)  # fmt: skip
def test_a_generator_is_made_from_its_name(name: str, class_name: str) -> None:
    assert type(factory.make_generator(name, Settings())).__name__ == class_name


def test_an_adapter_is_used_with_every_model_except_llama_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERYLIFT_CACHE", str(tmp_path))  # a cache without a prepared student

    def read_identity(name: str, **llama: str) -> str:
        return factory.make_generator(name, parse_settings({"llama": llama})).identity

    packaged_identity = f"llama:{find_packaged_model().name}"
    shipped_adapter = find_shipped_adapter()
    assert read_identity("llama") == (
        f"{packaged_identity}+{shipped_adapter.name}" if shipped_adapter else packaged_identity
    )
    assert read_identity("llama", adapter="my/a.gguf") == f"{packaged_identity}+a.gguf"
    assert read_identity("llama:base") == packaged_identity
    assert read_identity("llama:base", adapter="my/a.gguf") == packaged_identity
    assert read_identity("llama:m.gguf") == "llama:m.gguf"
    assert read_identity("llama:m.gguf", adapter="my/a.gguf") == "llama:m.gguf+a.gguf"


@pytest.mark.parametrize("name", ["", "gpt", "table:", "http:", "http:host"])
def test_the_error_for_an_unknown_generator_says_which_ones_exist(name: str) -> None:
    with pytest.raises(SettingsError, match="use"):
        factory.make_generator(name, Settings())


def test_the_generator_none_never_adds_anything() -> None:
    assert asyncio.run(NoneGenerator().expand(ExpansionRequest("download a page"))) is None


def _make_endpoint(status: int, answer: object) -> web.Application:
    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        assert body["temperature"] == 0
        assert request.headers["Authorization"] == "Bearer k"
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    return app


async def _expand_over_http(app: web.Application) -> Expansion | None:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    generator = HttpGenerator(f"http://127.0.0.1:{port}/v1", model="m", api_key="k", max_seconds=5)
    try:
        await generator.start()
        return await generator.expand(ExpansionRequest("download a page"))
    finally:
        await generator.close()
        await runner.cleanup()


def test_an_endpoints_answer_is_parsed_like_every_model_output() -> None:
    answer = {"choices": [{"message": {"content": "Sure! Here is a passage:\nUrlopen opens pages.\nMore."}}]}
    assert asyncio.run(_expand_over_http(_make_endpoint(200, answer))) == Expansion(text="Urlopen opens pages")


@pytest.mark.parametrize(("status", "answer"), [(500, {}), (429, {}), (200, {}), (200, []), (200, {"choices": []})])
def test_an_endpoint_that_fails_gives_a_generator_error(status: int, answer: object) -> None:
    with pytest.raises(GeneratorError):
        asyncio.run(_expand_over_http(_make_endpoint(status, answer)))


def test_an_endpoint_that_does_not_run_gives_a_generator_error() -> None:
    async def expand_query() -> None:
        generator = HttpGenerator("http://127.0.0.1:9/v1", model="m")
        await generator.start()
        try:
            await generator.expand(ExpansionRequest("download a page"))
        finally:
            await generator.close()

    with pytest.raises(GeneratorError, match="did not answer"):
        asyncio.run(expand_query())


@pytest.mark.model
def test_a_real_llama_server_answers_through_the_openai_api(tmp_path: Path) -> None:
    """The endpoint is llama-cpp-python's own server with the small model."""
    with run_llama_server(tmp_path) as url:
        expansion = asyncio.run(_expand_with_server(url))
    assert expansion is not None
    assert len(expansion.text.split()) > 3


async def _expand_with_server(url: str) -> Expansion | None:
    generator = HttpGenerator(url, model="m", max_seconds=60)
    await generator.start()
    try:
        return await generator.expand(ExpansionRequest("how do vaccines work"))
    finally:
        await generator.close()


def test_an_engine_that_sends_hundreds_of_warnings_is_read() -> None:
    warnings = b'Warning: 299 engine "this is deprecated"\r\n' * 300

    async def main() -> list[dict[str, object]]:
        async with run_stub_engine(
            answer_with(b'{"hits":{"hits":[{"_id":"1","_score":1}]}}', extra=warnings)
        ) as engine:
            reader = EngineReader(f"http://127.0.0.1:{engine.port}")
            await reader.start()
            try:
                return await reader.search_documents("docs", {})
            finally:
                await reader.close()

    assert [hit["_id"] for hit in asyncio.run(main())] == ["1"]
