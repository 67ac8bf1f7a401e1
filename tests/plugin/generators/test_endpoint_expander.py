"""An expander whose vectors an endpoint makes: what it serves, and how it notices that the endpoint has another model."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from querylift.plugin.errors import EndpointError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.fast_expander.encoder import MODEL_FILE, TOKENIZER_FILE, Encoder
from querylift.plugin.fast_expander.endpoint_encoder import PROBE_TEXTS, EndpointQueryEncoder
from querylift.plugin.fast_expander.expander_folder import RECORD_FILE, EndpointRecord, read_expander_record
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.fast_expander import FastExpanderGenerator, open_expander_model
from querylift.plugin.settings import parse_settings
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings
from tests.helpers.embeddings_server import EmbeddingsServer, edit_vectors, run_embeddings_server
from tests.helpers.expanders import TOPICS, write_expander, write_tiny_encoder
from tests.helpers.folders import edit_json_file

DOWN = "http://127.0.0.1:9"
BACKWARDS = edit_vectors(lambda vector: vector[::-1])
Drill = Callable[[FastExpanderGenerator], Awaitable[Any]]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same expander with its encoder in the folder."""
    work = tmp_path_factory.mktemp("endpoint")
    return write_expander(work / "local", write_tiny_encoder(work / "encoder"))


@pytest.fixture(scope="module")
def tiny(local: Path) -> Encoder:
    reading = read_expander_record(local).reading
    assert reading is not None
    return Encoder(local, reading)


@pytest.fixture
def server(tiny: Encoder) -> Iterator[EmbeddingsServer]:
    with run_embeddings_server(tiny) as running_server:
        yield running_server


@pytest.fixture
def folder(local: Path, tiny: Encoder, server: EmbeddingsServer, tmp_path: Path) -> Path:
    """The expander with its vectors from the endpoint."""
    folder = Path(shutil.copytree(local, tmp_path / "expander"))
    record = read_expander_record(folder)
    files = {name: facts.model_dump() for name, facts in record.files.items()}
    for name in (MODEL_FILE, TOKENIZER_FILE):
        (folder / name).unlink()
        del files[name]
    probes = {text: tiny.encode_query(text).tolist() for text in PROBE_TEXTS}
    endpoint = EndpointRecord(url=server.url, model="tiny", max_chars=200, probes=probes)
    edit_json_file(folder / RECORD_FILE, {"reading": None, "files": None, "endpoint": endpoint.model_dump()})
    edit_json_file(folder / RECORD_FILE, {"files": files})
    return folder


def run_drill(folder: Path, drill: Drill, **settings: Any) -> Any:
    """Return what `drill` returns for a started generator, and close the generator."""

    async def main() -> Any:
        generator = FastExpanderGenerator(folder, DOWN, endpoint=EncoderEndpointSettings.model_validate(settings))
        try:
            await generator.start()
            return await drill(generator)
        finally:
            await generator.close()

    return asyncio.run(main())


async def expand_boats(generator: FastExpanderGenerator) -> Expansion | None:
    return await generator.expand(ExpansionRequest("boats", "topics"))


# -- what is served -----------------------------------------------------------------------------------------------------


def test_the_terms_are_those_of_the_same_encoder_in_the_folder(
    folder: Path, local: Path, server: EmbeddingsServer
) -> None:
    expansion = run_drill(folder, expand_boats)
    expected = run_drill(local, expand_boats)
    assert {term.surface for term in expansion.terms[:10]} == set(TOPICS["sea"])
    assert [term.term for term in expansion.terms] == [term.term for term in expected.terms]
    assert server.batches == [[*PROBE_TEXTS], ["boats"]]
    assert open_expander_model(folder)[1].expand("boats") == expansion


def test_the_settings_may_name_another_address_and_a_key(folder: Path, tiny: Encoder) -> None:
    with run_embeddings_server(tiny, api_key="right") as moved_server:
        assert run_drill(folder, expand_boats, url=moved_server.url, api_key="right") is not None
        assert len(moved_server.bodies) == 2
        with pytest.raises(SettingsError, match=r"answered with status 401; set encoder\.api_key"):
            run_drill(folder, expand_boats, url=moved_server.url, api_key="wrong")


def test_a_record_that_was_written_before_there_were_endpoints_is_read(local: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(local, tmp_path / "old"))
    text = (folder / RECORD_FILE).read_text(encoding="utf-8")
    assert ' "endpoint": null,\n' in text and '"version": 1' in text
    (folder / RECORD_FILE).write_text(text.replace(' "endpoint": null,\n', ""), encoding="utf-8")
    assert run_drill(folder, expand_boats) is not None


def test_a_key_is_shown_nowhere() -> None:
    settings = parse_settings({"encoder": {"api_key": "a-secret"}})
    assert "a-secret" not in repr(settings)
    with pytest.raises(SettingsError) as caught:
        parse_settings({"encoder": {"url": "http://me:a-secret@host/v1"}})
    assert (
        str(caught.value) == "settings: encoder.url is given: put the key into encoder.api_key; a URL is shown in logs"
    )


# -- another model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (BACKWARDS, "answers with other vectors for 'tiny' than when the expander was built"),
        (edit_vectors(lambda vector: vector * 2), "answered with vectors of 64 numbers, but the expander has 32"),
        (lambda answer: b"no", "answered without vectors"),
    ],
)
def test_it_does_not_start_when_the_endpoint_has_another_model(
    folder: Path, server: EmbeddingsServer, edit: Any, problem: str
) -> None:
    server.edit = edit
    with pytest.raises(SettingsError) as caught:
        run_drill(folder, expand_boats)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_it_starts_without_the_endpoint_and_checks_it_later(
    folder: Path, server: EmbeddingsServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.failures = [503]

    async def drill(generator: FastExpanderGenerator) -> None:
        assert await expand_boats(generator) is not None
        assert server.batches[-1] == ["boats", *PROBE_TEXTS]
        server.failures, server.edit = [502], BACKWARDS
        for problem in ("status 502", "other vectors", "other vectors"):
            with pytest.raises(EndpointError, match=problem):
                await expand_boats(generator)
        server.edit = lambda answer: answer
        assert await expand_boats(generator) is not None

    with caplog.at_level(logging.WARNING, "querylift"):
        run_drill(folder, drill)
    assert caplog.messages[-1].startswith(
        f"the encoder is not there yet: {server.url}/embeddings answered with status 503"
    )


def test_the_model_is_checked_again_every_minute(folder: Path, server: EmbeddingsServer) -> None:
    record = read_expander_record(folder).endpoint
    assert record is not None
    now_s = 100.0

    async def main() -> None:
        nonlocal now_s
        encoder = EndpointQueryEncoder(record, EncoderEndpointSettings(), width=32, clock=lambda: now_s)
        await encoder.start()
        for later_s in (59, 2, 1):
            now_s += later_s
            await encoder.encode_query("boats")
        await encoder.close()

    asyncio.run(main())
    assert server.batches == [[*PROBE_TEXTS], ["boats"], ["boats", *PROBE_TEXTS], ["boats"]]


# -- faults -------------------------------------------------------------------------------------------------------------


def test_no_fault_tells_the_query_and_none_follows_a_redirect(
    folder: Path, server: EmbeddingsServer, caplog: pytest.LogCaptureFixture
) -> None:
    query = "a private matter"

    async def drill(generator: FastExpanderGenerator) -> None:
        for status in (307, 400, 404, 429, 500):
            server.failures = [status]
            with pytest.raises(EndpointError, match=f"answered with status {status}") as caught:
                await generator.expand(ExpansionRequest(query, "topics"))
            assert query not in str(caught.value)

    with caplog.at_level(logging.DEBUG):
        run_drill(folder, drill)
    assert query not in caplog.text


def test_an_endpoint_that_hangs_is_left_after_max_seconds(folder: Path, server: EmbeddingsServer) -> None:
    async def drill(generator: FastExpanderGenerator) -> None:
        server.edit = hang
        with pytest.raises(EndpointError, match=r"did not answer within 0\.2 s; raise encoder\.max_seconds"):
            await expand_boats(generator)

    def hang(answer: Any) -> Any:
        time.sleep(0.5)
        return answer

    run_drill(folder, drill, max_seconds=0.2)
