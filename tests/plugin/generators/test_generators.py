"""The sources of expansions that need no model."""

import asyncio
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from querylift.index_tools.proxy_process import free_ports
from querylift.plugin.errors import DataError, GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators import factory
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.http import HttpGenerator
from querylift.plugin.generators.llama.generator import packaged_model
from querylift.plugin.generators.llama.model_file import shipped_adapter
from querylift.plugin.generators.none import NoneGenerator
from querylift.plugin.generators.rm3 import relevance_model
from querylift.plugin.generators.table import TableGenerator, build
from querylift.plugin.settings import Settings, check


def _file(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


async def _lookup(path: Path, *texts: str) -> list[Expansion | None]:
    table = TableGenerator(path)
    await table.start()
    return [await table.expand(Ask(text)) for text in texts]


def test_a_table_finds_a_query_whatever_its_case_and_spaces(tmp_path: Path) -> None:
    path = _file(tmp_path, {"query": "Download a page", "text": "urlopen fetches"})
    found = asyncio.run(_lookup(path, "download  A page ", "another"))
    assert found == [Expansion(text="urlopen fetches"), None]


def test_a_table_reads_gzip_weighted_terms_and_ignores_other_keys(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl.gz"
    row = {"query": "axon", "field": "body", "terms": {"neuron": 2, "cell": 1}, "model": "x"}
    path.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n\n"))
    found = asyncio.run(_lookup(path, "axon"))[0]
    assert found is not None
    assert [(t.term, t.weight) for t in found.terms] == [("neuron", 2.0), ("cell", 1.0)]


def test_the_first_line_of_a_query_counts_and_the_identity_follows_the_content(tmp_path: Path) -> None:
    async def identity(text: str) -> str:
        table = TableGenerator(_file(tmp_path, {"query": "q", "text": text}, {"query": "Q", "text": "second"}))
        await table.start()
        assert await table.expand(Ask("q")) == Expansion(text=text)
        return table.identity

    assert asyncio.run(identity("first")) == asyncio.run(identity("first")) != asyncio.run(identity("other"))


def test_a_teachers_prose_is_cleaned(tmp_path: Path) -> None:
    text = "Certainly! Here is a passage that answers the query:\n\n**Urlopen** opens a page.\n\nA page is a page."
    found = asyncio.run(_lookup(_file(tmp_path, {"query": "q", "text": text}), "q"))[0]
    assert found == Expansion(text="Urlopen opens a page is")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", r"table\.jsonl:2: this line is not JSON"),
        ("[1]", r'table\.jsonl:2: this line has no "query"'),
        ('{"query": "q"}', r'table\.jsonl:2: an expansion has "text", or "field" and "terms"'),
        ('{"query": "q", "field": "f", "terms": {"a": 0}}', "at least one with a weight above zero"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text('{"query": "fine", "text": "words"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        asyncio.run(_lookup(path, "fine"))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.jsonl does not exist"):
        asyncio.run(_lookup(tmp_path / "gone.jsonl", "q"))


def test_a_table_is_built_from_the_rows_of_one_model(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "text": "small model", "model": "7B", "params": {"mode": "zs"}},
        {"query": "q", "text": "chain of thought", "model": "72B", "params": {"mode": "cot"}},
        {"query": "q", "text": "large model", "model": "72B", "params": {"mode": "zs"}},
        {"query": "Q ", "text": "a second sample", "model": "72B", "params": {"mode": "zs"}},
        {"query": "r", "text": "...", "model": "72B"},
    ]
    built = list(build(_file(tmp_path, *rows), where={"model": "72B", "params.mode": "zs"}))
    assert built == [{"query": "q", "text": "large model"}]


def test_rm3_weights_are_the_sum_of_term_share_times_score_share() -> None:
    def terms(**counts: int) -> dict[str, object]:
        return {
            "terms": {t: {"term_freq": n, "doc_freq": 1} for t, n in counts.items()},
            "field_statistics": {"doc_count": 50},
        }

    vectors = [
        {"_id": "1", "term_vectors": {"text": terms(axon=3, cell=1)}},
        {"_id": "2", "term_vectors": {"text": terms(axon=1, nerve=1)}},
    ]
    weights = relevance_model(vectors, {"1": 6.0, "2": 2.0}, field="text")
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
    assert list(relevance_model(vectors, {"1": 1.0}, field="text")) == ["rare"]


def test_rm3_of_nothing_is_nothing() -> None:
    assert relevance_model([], {}, field="text") == {}
    assert relevance_model([{"_id": "1"}], {"1": 1.0}, field="text") == {}


@pytest.mark.parametrize(
    ("spec", "kind"),
    [("none", "NoneGenerator"), ("table:f.jsonl", "TableGenerator"), ("feedback", "FeedbackGenerator"),
     ("feedback:body", "FeedbackGenerator"), ("http://127.0.0.1:1/v1", "HttpGenerator"),
     ("https://127.0.0.1:1/v1", "HttpGenerator"), ("http:http://127.0.0.1:1/v1", "HttpGenerator"),
     ("llama:m.gguf", "LlamaGenerator"), ("llama", "LlamaGenerator"), ("llama:base", "LlamaGenerator")],
)  # fmt: skip
def test_a_generator_is_made_from_its_name(spec: str, kind: str) -> None:
    assert type(factory.make(spec, Settings())).__name__ == kind


def test_an_adapter_goes_on_every_model_but_the_one_asked_for_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERYLIFT_CACHE", str(tmp_path))  # with no prepared student

    def identity(spec: str, **llama: str) -> str:
        return factory.make(spec, check({"llama": llama})).identity

    packaged = f"llama:{packaged_model().name}"
    shipped = shipped_adapter()
    assert identity("llama") == (f"{packaged}+{shipped.name}" if shipped else packaged)
    assert identity("llama", adapter="my/a.gguf") == f"{packaged}+a.gguf"
    assert identity("llama:base") == packaged
    assert identity("llama:base", adapter="my/a.gguf") == packaged
    assert identity("llama:m.gguf") == "llama:m.gguf"
    assert identity("llama:m.gguf", adapter="my/a.gguf") == "llama:m.gguf+a.gguf"


@pytest.mark.parametrize("spec", ["", "gpt", "table:", "http:", "http:host"])
def test_an_unknown_generator_is_named_with_what_there_is(spec: str) -> None:
    with pytest.raises(SettingsError, match="use"):
        factory.make(spec, Settings())


def test_none_never_has_anything_to_add() -> None:
    assert asyncio.run(NoneGenerator().expand(Ask("download a page"))) is None


def _endpoint(status: int, answer: object) -> web.Application:
    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        assert body["temperature"] == 0
        assert request.headers["Authorization"] == "Bearer k"
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    return app


async def _over_http(app: web.Application) -> Expansion | None:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    generator = HttpGenerator(f"http://127.0.0.1:{port}/v1", model="m", api_key="k", max_seconds=5)
    try:
        await generator.start()
        return await generator.expand(Ask("download a page"))
    finally:
        await generator.close()
        await runner.cleanup()


def test_an_endpoints_answer_is_parsed_like_any_model_output() -> None:
    answer = {"choices": [{"message": {"content": "Sure! Here is a passage:\nUrlopen opens pages.\nMore."}}]}
    assert asyncio.run(_over_http(_endpoint(200, answer))) == Expansion(text="Urlopen opens pages")


@pytest.mark.parametrize(("status", "answer"), [(500, {}), (429, {}), (200, {}), (200, []), (200, {"choices": []})])
def test_an_endpoint_that_fails_is_a_generator_error(status: int, answer: object) -> None:
    with pytest.raises(GeneratorError):
        asyncio.run(_over_http(_endpoint(status, answer)))


def test_an_endpoint_that_is_not_there_is_a_generator_error() -> None:
    async def ask() -> None:
        generator = HttpGenerator("http://127.0.0.1:9/v1", model="m")
        await generator.start()
        try:
            await generator.expand(Ask("download a page"))
        finally:
            await generator.close()

    with pytest.raises(GeneratorError, match="did not answer"):
        asyncio.run(ask())


@pytest.mark.model
def test_a_real_llama_server_answers_through_the_openai_api(tmp_path: Path) -> None:
    """The endpoint is llama-cpp-python's own server with the small model."""
    port = free_ports(1)[0]
    command = [sys.executable, "-W", "ignore", "-m", "llama_cpp.server", "--model", str(packaged_model())]
    command += ["--port", str(port), "--n_ctx", "512", "--n_threads", "1", "--chat_format", "chatml"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            expansion = asyncio.run(_when_up(f"http://127.0.0.1:{port}/v1"))
        finally:
            server.kill()
    assert expansion is not None
    assert len(expansion.text.split()) > 3


async def _when_up(url: str) -> Expansion | None:
    generator = HttpGenerator(url, model="m", max_seconds=60)
    await generator.start()
    try:
        for _ in range(300):
            try:
                return await generator.expand(Ask("how do vaccines work"))
            except GeneratorError:
                await asyncio.sleep(0.1)
        raise AssertionError("the server did not come up")
    finally:
        await generator.close()
