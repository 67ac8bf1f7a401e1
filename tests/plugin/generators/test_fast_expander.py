"""The generator `expander`: the terms that it adds, the searches that it expands, its start and its end."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from querylift.plugin.engine.access import build_engine_access
from querylift.plugin.errors import GeneratorBusy, GeneratorError, MissingExtra, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.expander_folder import RECORD_FILE
from querylift.plugin.generation_meter import GenerationMeter
from querylift.plugin.generators import factory
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.fast_expander import FastExpanderGenerator
from querylift.plugin.settings import Settings, parse_settings
from tests.helpers.expanders import TEXTS, TOPICS, remove_document_ids, write_expander, write_tiny_encoder
from tests.helpers.folders import edit_json_file
from tests.helpers.upstream_stub import Handler, ReceivedRequest, answer_with, run_stub_engine

DOWN = "http://127.0.0.1:9"
Drill = Callable[[FastExpanderGenerator], Awaitable[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("generator")
    return write_expander(work / "whole", write_tiny_encoder(work / "encoder"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _run_drill(folder: Path, drill: Drill, *, engine: str = DOWN, **options: Any) -> Any:
    """Return what `drill` returns for a started generator, and close the generator."""

    async def main() -> Any:
        generator = FastExpanderGenerator(folder, engine, **options)
        await generator.start()
        try:
            return await drill(generator)
        finally:
            await generator.close()

    return asyncio.run(main())


def _expand_texts(folder: Path, *texts: str, index: str = "topics") -> list[Expansion | None]:
    async def drill(generator: FastExpanderGenerator) -> list[Expansion | None]:
        return [await generator.expand(ExpansionRequest(text, index)) for text in texts]

    expansions: list[Expansion | None] = _run_drill(folder, drill)
    return expansions


# -- terms --------------------------------------------------------------------------------------------------------------


def test_the_nearest_documents_come_with_weights_that_fall_with_the_rank(folder: Path) -> None:
    (expansion,) = _expand_texts(folder, "telescopes and moons")
    assert expansion is not None
    assert {document.doc_id for document in expansion.documents} == {f"sky-{i}" for i in range(10)}
    assert [document.weight for document in expansion.documents[:2]] == [7.947, 7.8947]


def test_a_folder_without_ids_adds_terms_only(copy: Path) -> None:
    remove_document_ids(copy)
    (expansion,) = _expand_texts(copy, "telescopes and moons")
    assert expansion is not None
    assert expansion.terms and not expansion.documents


@pytest.mark.parametrize(("query", "topic"), [("boats", "sea"), ("telescopes and moons", "sky"), ("Judges!", "law")])
def test_the_heaviest_terms_come_from_the_documents_on_the_querys_topic(folder: Path, query: str, topic: str) -> None:
    (expansion,) = _expand_texts(folder, query)
    assert expansion is not None
    assert (expansion.field, expansion.text) == ("contents", "")
    weights = [term.weight for term in expansion.terms]
    assert weights == sorted(weights, reverse=True) and weights[-1] > 0
    assert {term.surface for term in expansion.terms[:10]} == set(TOPICS[topic])
    assert all(term.term == term.surface.rstrip("s") for term in expansion.terms)


def test_it_adds_as_many_terms_as_the_folder_says(copy: Path) -> None:
    edit_json_file(copy / RECORD_FILE, {"shape": {"terms": 3}})
    (expansion,) = _expand_texts(copy, "boats")
    assert expansion is not None and expansion.count_words() == 3


def test_letter_case_white_space_and_control_characters_change_nothing(folder: Path) -> None:
    expansion, *variants = _expand_texts(folder, "boats waves", " Boats \u0000 waves", "BOATS\n\nWAVES\u200b")
    assert expansion is not None
    assert variants == [expansion, expansion]


def test_a_query_without_a_word_has_no_terms(folder: Path) -> None:
    assert _expand_texts(folder, "", " \n", "\u0000\ud83d") == [None, None, None]


def test_a_query_in_a_language_that_the_encoder_does_not_know_has_no_terms(folder: Path) -> None:
    assert _expand_texts(folder, "离婚后孩子归谁") == [None]


def test_a_query_of_ten_thousand_words_is_cut_to_its_beginning(folder: Path) -> None:
    words = " ".join(TEXTS.values())
    short_expansion, long_expansion = _expand_texts(folder, words, f"{words} " * 60)
    assert short_expansion == long_expansion is not None


# -- searches -----------------------------------------------------------------------------------------------------------


def test_a_search_on_the_index_or_an_alias_of_it_is_expanded(folder: Path) -> None:
    for index in ("topics", "topics-1", "topics-1,topics"):
        assert _expand_texts(folder, "boats", index=index) != [None]


@pytest.mark.parametrize("index", ["other", "topics,other", "topics*", "_all", "", "topics-2"])
def test_a_search_on_another_index_is_an_error(folder: Path, index: str) -> None:
    with pytest.raises(GeneratorError) as caught:
        _expand_texts(folder, "boats", index=index)
    assert str(caught.value) == (f"the expander {folder} was built from topics, topics-1, but the search is on {index}")


# -- concurrency --------------------------------------------------------------------------------------------------------


def test_requests_beyond_the_queue_fail_and_later_ones_are_answered(folder: Path) -> None:
    async def drill(generator: FastExpanderGenerator) -> None:
        requests = [generator.expand(ExpansionRequest("boats", "topics")) for _ in range(5)]
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(result) for result in results] == [Expansion] * 2 + [GeneratorBusy] * 3
        assert str(results[2]) == "2 requests already wait for the expander"
        assert await generator.expand(ExpansionRequest("boats", "topics")) == results[0]

    _run_drill(folder, drill, max_pending=2)


def test_the_number_of_requests_that_wait_for_a_thread_is_reported(folder: Path) -> None:
    changes: list[int] = []

    class QueueMeter(GenerationMeter):
        def add_waiting(self, change: int) -> None:
            changes.append(change)

    async def drill(generator: FastExpanderGenerator) -> None:
        generator.meter = QueueMeter()
        await asyncio.gather(*(generator.expand(ExpansionRequest("boats", "topics")) for _ in range(3)))
        assert changes == [1, 1, -1, -1]

    _run_drill(folder, drill, threads=1)


@pytest.mark.parametrize("threads", [1, 4])
def test_each_of_many_requests_gets_its_own_expansion(folder: Path, threads: int) -> None:
    texts = list(TEXTS.values())
    expansions = _expand_texts(folder, *texts)
    assert len({tuple(expansion.terms) for expansion in expansions if expansion}) > 30

    async def drill(generator: FastExpanderGenerator) -> list[Expansion | None]:
        return list(await asyncio.gather(*(generator.expand(ExpansionRequest(text, "topics")) for text in texts * 5)))

    assert _run_drill(folder, drill, threads=threads, max_pending=200) == expansions * 5


# -- start and end ------------------------------------------------------------------------------------------------------


def test_the_identity_depends_on_the_folders_content_not_on_its_name(folder: Path, copy: Path) -> None:
    async def read_identity(generator: FastExpanderGenerator) -> str:
        return generator.identity

    identity = _run_drill(folder, read_identity)
    assert identity.startswith("expander:") and identity == _run_drill(copy, read_identity)
    edit_json_file(copy / RECORD_FILE, {"built": "2025-01-02"})
    assert _run_drill(copy, read_identity) != identity
    assert FastExpanderGenerator(folder, DOWN).reads_index


def test_it_can_be_closed_twice_and_before_it_is_started(folder: Path) -> None:
    async def main() -> None:
        generator = FastExpanderGenerator(folder, DOWN)
        await generator.close()
        for _ in range(2):  # a closed generator can be started again
            with pytest.raises(GeneratorError, match=r"the expander is not open; call start\(\) first"):
                await generator.expand(ExpansionRequest("boats", "topics"))
            await generator.start()
            assert await generator.expand(ExpansionRequest("boats", "topics")) is not None
            assert _count_threads() == 1
            await generator.close()
            await generator.close()
            assert _count_threads() == 0

    asyncio.run(main())


def test_no_request_waits_for_ever_when_it_is_closed(folder: Path) -> None:
    async def main() -> None:
        generator = FastExpanderGenerator(folder, DOWN)
        await generator.start()
        tasks = [
            asyncio.ensure_future(generator.expand(ExpansionRequest(text, "topics")))
            for text in list(TEXTS.values()) * 3
        ]
        await asyncio.sleep(0)
        await generator.close()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {Expansion, GeneratorBusy, asyncio.CancelledError}
        assert _count_threads() == 0

    asyncio.run(main())


def _count_threads() -> int:
    return sum(thread.name.startswith("expander") for thread in threading.enumerate())


def test_a_folder_without_an_expander_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone is not an expander, because it has no expander\.json"):
        _expand_texts(tmp_path / "gone", "boats")


def test_it_is_made_from_its_name_and_the_settings(folder: Path) -> None:
    generator = factory.make_generator(
        f"expander:{folder}", parse_settings({"expander": {"threads": 2, "queue_size": 1}, "engine": DOWN})
    )

    async def main() -> None:
        await generator.start()
        requests = [generator.expand(ExpansionRequest("boats", "topics")) for _ in range(2)]
        assert isinstance((await asyncio.gather(*requests, return_exceptions=True))[1], GeneratorBusy)
        await generator.close()

    asyncio.run(main())
    with pytest.raises(SettingsError, match="generator is 'expander:' without a folder; use expander:FOLDER"):
        factory.make_generator("expander:", Settings())


# -- the check of the index ---------------------------------------------------------------------------------------------


def _make_engine(*, terms: str = "boat", count: int = 40) -> tuple[Handler, list[ReceivedRequest]]:
    """Return an engine that makes `terms` of "boats" and has `count` documents, and the requests that it receives."""
    requests: list[ReceivedRequest] = []

    async def handle(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        requests.append(request)
        tokens = {"tokens": [{"token": terms, "start_offset": 0, "end_offset": 5}]}
        answer = tokens if b"_analyze" in request.start_line else {"count": count}
        await answer_with(json.dumps(answer).encode())(request, writer)

    return handle, requests


def _start_and_close(folder: Path, handle: Handler, **options: Any) -> str:
    async def main() -> str:
        async with run_stub_engine(handle) as stub:
            generator = FastExpanderGenerator(folder, f"http://127.0.0.1:{stub.port}", **options)
            await generator.start()
            await generator.close()
            return f"http://127.0.0.1:{stub.port}"

    return asyncio.run(main())


def test_an_unchanged_index_gives_no_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    handle, requests = _make_engine(count=44)
    settings = parse_settings({"engine_username": "lift", "engine_password": "gehei\u0301m"})
    _start_and_close(folder, handle, access=build_engine_access(settings))
    assert caplog.messages == []
    assert [request.start_line for request in requests] == [
        b"POST /topics-1/_analyze HTTP/1.1",
        b"GET /topics/_count HTTP/1.1",
    ]
    assert json.loads(requests[0].body) == {"field": "contents", "text": ["boats"]}
    basic_auth = b"Basic " + base64.b64encode("lift:gehei\u0301m".encode())
    assert all(request.get_header_values(b"authorization") == [basic_auth] for request in requests)
    assert all(request.get_header_values(b"x-querylift") == [b"off"] for request in requests)


@pytest.mark.parametrize("count", [45, 35, 0])
def test_an_index_that_grew_or_shrank_by_more_than_a_tenth_gives_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    _start_and_close(folder, _make_engine(count=count)[0])
    assert caplog.messages == [
        f"topics holds {count} documents now, but held 40 when the expander {folder} was built; build the expander again"
    ]


def test_an_analyzer_that_makes_other_terms_is_an_error(folder: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        _start_and_close(folder, _make_engine(terms="boats")[0])
    assert str(caught.value) == (
        f"the analyzer of contents on topics makes boats of 'boats', but made boat when {folder} was built; "
        "build the expander again"
    )


def test_an_engine_that_does_not_answer_gives_a_warning_and_searches_are_expanded(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _expand_texts(folder, "boats") != [None]
    assert caplog.record_tuples == [("querylift", logging.WARNING, caplog.messages[0])]
    assert f"cannot check whether topics still matches the expander {folder}: " in caplog.messages[0]


@pytest.mark.parametrize(
    "handle",
    [answer_with(b"{}", status="401 Unauthorized"), answer_with(b"{}"), answer_with(b"[]"), answer_with(b"no JSON"),
     answer_with(b'{"tokens": [{}], "count": 1}'), answer_with(b'{"tokens": 5}')],
)  # fmt: skip
def test_an_engine_with_an_unexpected_answer_gives_a_warning_too(
    folder: Path, caplog: pytest.LogCaptureFixture, handle: Handler
) -> None:
    _start_and_close(folder, handle)
    assert len(caplog.messages) == 1 and "cannot check whether " in caplog.messages[0]


# -- imports ------------------------------------------------------------------------------------------------------------


def test_importing_it_loads_nothing_heavy_and_serving_loads_no_training_stack(folder: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
def loaded(*names): return [name for name in names if name in sys.modules]
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.engine.access import build_engine_access
from querylift.plugin.generators.fast_expander import FastExpanderGenerator
print(loaded("numpy", "onnxruntime", "tokenizers", "faiss", "torch", "transformers", "onnx", "querylift.index_tools"))
async def main():
    generator = FastExpanderGenerator(Path(sys.argv[1]), "http://127.0.0.1:9")
    await generator.start()
    assert await generator.expand(ExpansionRequest("boats", "topics"))
    await generator.close()
asyncio.run(main())
print(loaded("torch", "transformers", "onnx", "safetensors", "querylift.index_tools", "opensearchpy"))
"""
    process = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n[]\n"


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers", "numpy", "faiss"])
def test_without_a_package_the_error_gives_the_install_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package}.* is not installed; .*pip install '\.\[expander\]'"):
        _expand_texts(folder, "boats")
