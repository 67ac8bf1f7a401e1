"""The generator that answers from an expander's folder: what it gives, what it refuses, how it starts and ends."""

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

import aiohttp
import pytest

from querylift.plugin.errors import Busy, GeneratorError, MissingExtra, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.folder import ABOUT
from querylift.plugin.generators import factory
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.fast_expander import ExpanderGenerator
from querylift.plugin.settings import Settings, check
from tests.helpers.expanders import TEXTS, TOPICS, made_expander, tiny_encoder
from tests.helpers.folders import edit
from tests.helpers.upstream_stub import Handler, Received, answering, stub_engine

DOWN = "http://127.0.0.1:9"
Body = Callable[[ExpanderGenerator], Awaitable[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("generator")
    return made_expander(work / "whole", tiny_encoder(work / "encoder"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _with(folder: Path, body: Body, *, engine: str = DOWN, **options: Any) -> Any:
    """What `body` makes of the generator, started, and closed after it."""

    async def main() -> Any:
        generator = ExpanderGenerator(folder, engine, **options)
        await generator.start()
        try:
            return await body(generator)
        finally:
            await generator.close()

    return asyncio.run(main())


def _expanded(folder: Path, *texts: str, index: str = "topics") -> list[Expansion | None]:
    async def body(generator: ExpanderGenerator) -> list[Expansion | None]:
        return [await generator.expand(Ask(text, index)) for text in texts]

    found: list[Expansion | None] = _with(folder, body)
    return found


# -- what it gives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("query", "topic"), [("boats", "sea"), ("telescopes and moons", "sky"), ("Judges!", "law")])
def test_the_heaviest_terms_are_those_of_the_documents_about_it(folder: Path, query: str, topic: str) -> None:
    (found,) = _expanded(folder, query)
    assert found is not None
    assert (found.field, found.text) == ("contents", "")
    weights = [term.weight for term in found.terms]
    assert weights == sorted(weights, reverse=True) and weights[-1] > 0
    assert {term.surface for term in found.terms[:10]} == set(TOPICS[topic])
    assert all(term.term == term.surface.rstrip("s") for term in found.terms)


def test_it_gives_as_many_terms_as_the_folder_says(copy: Path) -> None:
    edit(copy / ABOUT, {"shape": {"terms": 3}})
    (found,) = _expanded(copy, "boats")
    assert found is not None and found.size() == 3


def test_case_spaces_and_controls_change_nothing(folder: Path) -> None:
    first, *others = _expanded(folder, "boats waves", " Boats \u0000 waves", "BOATS\n\nWAVES\u200b")
    assert first is not None
    assert others == [first, first]


def test_a_query_without_a_word_has_nothing_to_add(folder: Path) -> None:
    assert _expanded(folder, "", " \n", "\u0000\ud83d") == [None, None, None]


def test_a_query_in_another_language_than_the_encoders_has_nothing_to_add(folder: Path) -> None:
    assert _expanded(folder, "离婚后孩子归谁") == [None]


def test_a_query_of_ten_thousand_words_is_one_of_its_first(folder: Path) -> None:
    words = " ".join(TEXTS.values())
    first, second = _expanded(folder, words, f"{words} " * 60)
    assert first == second is not None


# -- which searches -----------------------------------------------------------------------------------------------------


def test_a_search_on_the_index_or_an_alias_of_it_is_expanded(folder: Path) -> None:
    for index in ("topics", "topics-1", "topics-1,topics"):
        assert _expanded(folder, "boats", index=index) != [None]


@pytest.mark.parametrize("index", ["other", "topics,other", "topics*", "_all", "", "topics-2"])
def test_a_search_on_another_index_is_a_sentence(folder: Path, index: str) -> None:
    with pytest.raises(GeneratorError) as caught:
        _expanded(folder, "boats", index=index)
    assert str(caught.value) == (f"the expander {folder} was built from topics, topics-1, and the search is on {index}")


# -- many at once -------------------------------------------------------------------------------------------------------


def test_more_than_may_wait_are_told_so_and_there_is_room_again(folder: Path) -> None:
    async def body(generator: ExpanderGenerator) -> None:
        asks = [generator.expand(Ask("boats", "topics")) for _ in range(5)]
        found = await asyncio.gather(*asks, return_exceptions=True)
        assert [type(one) for one in found] == [Expansion, Expansion, Busy, Busy, Busy]
        assert str(found[2]) == "2 requests already wait for the expander"
        assert await generator.expand(Ask("boats", "topics")) == found[0]

    _with(folder, body, max_pending=2)


@pytest.mark.parametrize("threads", [1, 4])
def test_every_ask_of_many_gets_its_own_answer(folder: Path, threads: int) -> None:
    texts = list(TEXTS.values())
    alone = _expanded(folder, *texts)
    assert len({tuple(one.terms) for one in alone if one}) > 30

    async def body(generator: ExpanderGenerator) -> list[Expansion | None]:
        return list(await asyncio.gather(*(generator.expand(Ask(text, "topics")) for text in texts * 5)))

    assert _with(folder, body, threads=threads, max_pending=200) == alone * 5


# -- its start and its end ----------------------------------------------------------------------------------------------


def test_the_identity_is_the_folders_content_not_its_name(folder: Path, copy: Path) -> None:
    async def identity(generator: ExpanderGenerator) -> str:
        return generator.identity

    first = _with(folder, identity)
    assert first.startswith("expander:") and first == _with(copy, identity)
    edit(copy / ABOUT, {"built": "2025-01-02"})
    assert _with(copy, identity) != first
    assert ExpanderGenerator(folder, DOWN).reads_index


def test_it_can_be_closed_twice_and_before_it_is_started(folder: Path) -> None:
    async def main() -> None:
        generator = ExpanderGenerator(folder, DOWN)
        await generator.close()
        for _ in range(2):  # opened again, it works again
            with pytest.raises(GeneratorError, match=r"the expander is not open; call start\(\) first"):
                await generator.expand(Ask("boats", "topics"))
            await generator.start()
            assert await generator.expand(Ask("boats", "topics")) is not None
            assert _threads() == 1
            await generator.close()
            await generator.close()
            assert _threads() == 0

    asyncio.run(main())


def test_nobody_waits_for_ever_when_it_is_closed(folder: Path) -> None:
    async def main() -> None:
        generator = ExpanderGenerator(folder, DOWN)
        await generator.start()
        asks = [asyncio.ensure_future(generator.expand(Ask(text, "topics"))) for text in list(TEXTS.values()) * 3]
        await asyncio.sleep(0)
        await generator.close()
        async with asyncio.timeout(5):
            found = await asyncio.gather(*asks, return_exceptions=True)
        assert {type(one) for one in found} <= {Expansion, Busy, asyncio.CancelledError}
        assert _threads() == 0

    asyncio.run(main())


def _threads() -> int:
    return sum(thread.name.startswith("expander") for thread in threading.enumerate())


def test_a_folder_that_is_none_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone has no expander\.json, so it is no expander"):
        _expanded(tmp_path / "gone", "boats")


def test_it_is_made_from_its_name_and_the_settings(folder: Path) -> None:
    made = factory.make(f"expander:{folder}", check({"expander": {"threads": 2, "queue_size": 1}, "engine": DOWN}))

    async def main() -> None:
        await made.start()
        asks = [made.expand(Ask("boats", "topics")) for _ in range(2)]
        assert isinstance((await asyncio.gather(*asks, return_exceptions=True))[1], Busy)
        await made.close()

    asyncio.run(main())
    with pytest.raises(SettingsError, match="generator is 'expander:' without a folder; use expander:FOLDER"):
        factory.make("expander:", Settings())


# -- the engine at its start --------------------------------------------------------------------------------------------


def _engine(*, terms: str = "boat", count: int = 40) -> tuple[Handler, list[Received]]:
    """An engine that analyses "boats" and counts as told, and what it was asked."""
    asked: list[Received] = []

    async def handle(request: Received, writer: asyncio.StreamWriter) -> None:
        asked.append(request)
        tokens = {"tokens": [{"token": terms, "start_offset": 0, "end_offset": 5}]}
        answer = tokens if b"_analyze" in request.start_line else {"count": count}
        await answering(json.dumps(answer).encode())(request, writer)

    return handle, asked


def _started(folder: Path, handle: Handler, **options: Any) -> str:
    async def main() -> str:
        async with stub_engine(handle) as stub:
            generator = ExpanderGenerator(folder, f"http://127.0.0.1:{stub.port}", **options)
            await generator.start()
            await generator.close()
            return f"http://127.0.0.1:{stub.port}"

    return asyncio.run(main())


@pytest.mark.filterwarnings("ignore:.* is deprecated")  # by aiohttp 3.14, for 4
def test_an_index_that_is_as_it_was_is_told_in_no_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    handle, asked = _engine(count=44)
    _started(folder, handle, auth=aiohttp.BasicAuth("lift", "secret"))
    assert caplog.messages == []
    assert [one.start_line for one in asked] == [
        b"POST /topics-1/_analyze HTTP/1.1",
        b"GET /topics/_count HTTP/1.1",
    ]
    assert json.loads(asked[0].body) == {"field": "contents", "text": ["boats"]}
    basic = b"Basic " + base64.b64encode(b"lift:secret")
    assert all(one.header(b"authorization") == [basic] and one.header(b"x-querylift") == [b"off"] for one in asked)


@pytest.mark.parametrize("count", [45, 35, 0])
def test_an_index_that_grew_or_shrank_by_more_than_a_tenth_is_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    _started(folder, _engine(count=count)[0])
    assert caplog.messages == [
        f"topics holds {count} documents, and 40 when the expander {folder} was built; build it again"
    ]


def test_an_analyzer_that_makes_other_terms_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        _started(folder, _engine(terms="boats")[0])
    assert str(caught.value) == (
        f"the analyzer of contents on topics makes boats of 'boats', and boat when {folder} was built; "
        "build the expander again"
    )


def test_an_engine_that_does_not_answer_is_a_warning_and_searches_are_expanded(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _expanded(folder, "boats") != [None]
    assert caplog.record_tuples == [("querylift", logging.WARNING, caplog.messages[0])]
    assert f"whether topics is still as the expander {folder} has it is not known: " in caplog.messages[0]


@pytest.mark.parametrize(
    "handle",
    [answering(b"{}", status="401 Unauthorized"), answering(b"{}"), answering(b"[]"), answering(b"no JSON"),
     answering(b'{"tokens": [{}], "count": 1}'), answering(b'{"tokens": 5}')],
)  # fmt: skip
def test_an_engine_that_answers_with_something_else_is_a_warning_too(
    folder: Path, caplog: pytest.LogCaptureFixture, handle: Handler
) -> None:
    _started(folder, handle)
    assert len(caplog.messages) == 1 and "is not known: " in caplog.messages[0]


# -- what it loads ------------------------------------------------------------------------------------------------------


def test_importing_it_loads_nothing_heavy_and_serving_no_training_stack(folder: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
def loaded(*names): return [name for name in names if name in sys.modules]
from querylift.plugin.generators.base import Ask
from querylift.plugin.generators.fast_expander import ExpanderGenerator
print(loaded("numpy", "onnxruntime", "tokenizers", "faiss", "torch", "transformers", "onnx", "index_tools"))
async def main():
    generator = ExpanderGenerator(Path(sys.argv[1]), "http://127.0.0.1:9")
    await generator.start()
    assert await generator.expand(Ask("boats", "topics"))
    await generator.close()
asyncio.run(main())
print(loaded("torch", "transformers", "onnx", "safetensors", "index_tools", "opensearchpy"))
"""
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers", "numpy", "faiss"])
def test_without_a_package_the_install_line_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package}.* is not installed.*querylift\[expander\]"):
        _expanded(folder, "boats")
