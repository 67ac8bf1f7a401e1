"""An expander is built with the vectors of an endpoint: in batches, with retries, and with a sentence for every bad answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from querylift.index_tools.commands.expander import expander
from querylift.index_tools.engine import Engine
from querylift.index_tools.fast_expander.build import BuildRequest, BuildResult, build_expander
from querylift.index_tools.fast_expander.encoder_conversion import write_encoder
from querylift.plugin.errors import EndpointError, SettingsError
from querylift.plugin.fast_expander.encoder import Encoder
from querylift.plugin.fast_expander.endpoint_encoder import PROBE_TEXTS
from querylift.plugin.fast_expander.expander_folder import read_expander_record
from querylift.plugin.settings import parse_settings
from querylift.plugin.settings_tables.generators import EncoderEndpointSettings
from tests.helpers.embeddings_server import EmbeddingsServer, edit_vectors, run_embeddings_server
from tests.helpers.expanders import TEXTS, create_index, fill_index, remove_indices, write_tiny_encoder

pytestmark = pytest.mark.engine
INDEX = "expander-endpoint"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    work = tmp_path_factory.mktemp("tiny")
    settings = write_encoder(write_tiny_encoder(work / "encoder"), work)
    return Encoder(work, settings)


@pytest.fixture
def server(tiny: Encoder) -> Iterator[EmbeddingsServer]:
    with run_embeddings_server(tiny) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def engine(opensearch: str) -> Iterator[Engine]:
    """The engine with the forty documents."""
    with Engine(parse_settings({"engine": opensearch})) as connected_engine:
        remove_indices(connected_engine, INDEX)
        create_index(connected_engine, INDEX)
        fill_index(connected_engine, INDEX, TEXTS)
        yield connected_engine
        remove_indices(connected_engine, INDEX)


def build_into(engine: Engine, folder: Path, url: str, **settings: Any) -> BuildResult:
    endpoint = EncoderEndpointSettings.model_validate({"model": "tiny", **settings})
    return build_expander(engine, BuildRequest(INDEX, "contents", folder, encoder=url, endpoint=endpoint))


def read_error(engine: Engine, folder: Path, url: str, **settings: Any) -> str:
    with pytest.raises((EndpointError, SettingsError)) as caught:
        build_into(engine, folder, url, **settings)
    assert "\n" not in str(caught.value)
    assert list(folder.glob("*.json")) == []
    return str(caught.value)


def read_probes(folder: Path) -> list[tuple[float, ...]]:
    endpoint = read_expander_record(folder).endpoint
    assert endpoint is not None
    return list(endpoint.probes.values())


# -- a good endpoint ----------------------------------------------------------------------------------------------------


def test_a_build_sends_each_document_once_in_batches_and_keeps_the_identity_of_the_vectors(
    engine: Engine, server: EmbeddingsServer, tiny: Encoder, tmp_path: Path
) -> None:
    settings = {"batch_size": 15, "query_prefix": "query: ", "document_prefix": "passage: ", "max_chars": 14}
    built = build_into(engine, tmp_path / "out", server.url, **settings)
    assert built.encoded == 40
    probes, *batches = server.batches
    assert probes == [f"query: {text[:14]}" for text in PROBE_TEXTS]
    documents = [text for batch in batches for text in batch]
    assert sorted(documents[-40:]) == sorted(f"passage: {text[:14]}" for text in TEXTS.values())
    assert sorted(map(len, batches))[-2:] == [15, 15]
    record = read_expander_record(tmp_path / "out")
    assert (record.encoder, record.width, record.reading) == ("tiny", 32, None)
    assert record.endpoint is not None and not {"encoder.onnx", "tokenizer.json"} & {*record.files}
    assert record.endpoint.model_dump(exclude={"probes"}) == {
        "url": server.url, "model": "tiny", "query_prefix": "query: ", "document_prefix": "passage: ",
        "query_input_type": "", "document_input_type": "", "max_chars": 14,
    }  # fmt: skip
    np.testing.assert_allclose(
        list(record.endpoint.probes.values()), [tiny.encode_query(text) for text in probes], atol=1e-5
    )


def test_the_command_takes_url_model_and_key(
    engine: Engine, tiny: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERYLIFT_ENCODER__API_KEY", "a-secret-key")
    arguments = ["build", INDEX, "--engine", engine.url, "--out", str(tmp_path / "out")]
    with run_embeddings_server(tiny, api_key="a-secret-key") as server:
        result = CliRunner().invoke(expander, [*arguments, "--encoder", server.url, "--encoder-model", "tiny"])
    assert result.exit_code == 0, result.output
    assert "40 documents (40 encoded now)" in result.output
    assert all(b"a-secret-key" not in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_types_of_texts_are_named_to_an_endpoint_that_asks_for_them(
    engine: Engine, server: EmbeddingsServer, tmp_path: Path
) -> None:
    build_into(
        engine, tmp_path / "out", server.url, query_input_type="query", document_input_type="passage", batch_size=40
    )
    assert [body["input_type"] for body in server.bodies] == ["query", "passage"]
    assert {body["encoding_format"] for body in server.bodies} == {"float"}


def test_vectors_may_come_in_any_order(engine: Engine, server: EmbeddingsServer, tmp_path: Path) -> None:
    build_into(engine, tmp_path / "in-order", server.url)
    server.edit = lambda answer: {**answer, "data": answer["data"][::-1]}
    build_into(engine, tmp_path / "reversed", server.url)
    names = ("documents.faiss", "documents.terms.npy")
    for name in names:
        assert (tmp_path / "in-order" / name).read_bytes() == (tmp_path / "reversed" / name).read_bytes()


def test_a_busy_endpoint_is_asked_again(engine: Engine, server: EmbeddingsServer, tmp_path: Path) -> None:
    server.failures = [429]
    assert build_into(engine, tmp_path / "out", server.url).encoded == 40
    assert server.batches[0] == server.batches[1] == list(PROBE_TEXTS)


def test_a_later_build_encodes_only_new_documents_and_the_endpoint_may_have_moved(
    engine: Engine, server: EmbeddingsServer, tiny: Encoder, tmp_path: Path
) -> None:
    build_into(engine, tmp_path / "out", server.url)
    with run_embeddings_server(tiny) as moved_server:
        assert build_into(engine, tmp_path / "out", moved_server.url).encoded == 0
        assert moved_server.batches[0] == list(PROBE_TEXTS)


# -- a bad endpoint -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (edit_vectors(lambda vector: [*vector[:-1], float("nan")]), "answered with numbers that are not finite"),
        (edit_vectors(lambda vector: [vector, vector]), "embeddings that are not lists of numbers of one length"),
        (edit_vectors(lambda vector: "AAAA"), "embeddings that are not lists of numbers of one length"),
        (edit_vectors(lambda vector: []), "embeddings that are not lists of numbers of one length"),
        (edit_vectors(lambda vector: {"values": vector}), "embeddings that are not lists of numbers of one length"),
        (edit_vectors(lambda vector: [10**400, *vector[1:]]), "embeddings that are not lists of numbers of one length"),
        (lambda answer: {**answer, "data": answer["data"][:-1]}, "answered 3 texts with 2 vectors"),
        (lambda answer: {**answer, "data": [answer["data"][0]] * 3}, "3 vectors of the numbers [0, 0, 0]; use another"),
        (lambda answer: b"[" * 100_000, "answered without vectors"),
        (lambda answer: {**answer, "data": []}, "answered 3 texts with 0 vectors"),
        (lambda answer: {"embeddings": []}, "answered without vectors"),
        (lambda answer: [1, 2], "answered without vectors"),
        (lambda answer: b"<html>welcome</html>", "answered without vectors"),
        (lambda answer: b"", "answered without vectors"),
    ],
)
def test_an_answer_that_is_not_vectors_ends_the_build_with_a_sentence(
    engine: Engine, server: EmbeddingsServer, tmp_path: Path, edit: Callable[[Any], Any], problem: str
) -> None:
    server.edit = edit
    message = read_error(engine, tmp_path, server.url)
    assert message.startswith(f"{server.url}/embeddings answered") and problem in message


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "set encoder.api_key (QUERYLIFT_ENCODER__API_KEY)"),
        (403, "set encoder.api_key (QUERYLIFT_ENCODER__API_KEY)"),
        (404, "check that the URL ends in /v1 and that the endpoint has the model 'tiny'"),
        (307, "redirects are not followed; name the URL that it redirects to"),
        (413, "lower encoder.max_chars or encoder.batch_size, or look into the endpoint's log"),
    ],
)
def test_a_refusal_ends_the_build_at_once_and_says_what_to_do(
    engine: Engine, server: EmbeddingsServer, tmp_path: Path, status: int, remedy: str
) -> None:
    server.failures = [status]
    expected = f"{server.url}/embeddings answered with status {status}; {remedy}"
    assert read_error(engine, tmp_path, server.url) == expected


def test_an_endpoint_that_is_not_there_ends_the_build_after_a_second(engine: Engine, tmp_path: Path) -> None:
    assert read_error(engine, tmp_path, "http://127.0.0.1:9/v1") == (
        "http://127.0.0.1:9/v1/embeddings did not answer (ClientConnectorError); start the endpoint, or correct its URL"
    )


def test_huge_and_tiny_numbers_are_vectors_too(engine: Engine, server: EmbeddingsServer, tmp_path: Path) -> None:
    server.edit = edit_vectors(lambda vector: [number * 1e300 for number in vector])
    build_into(engine, tmp_path / "huge", server.url)
    server.edit = edit_vectors(lambda vector: [number * 1e-9 for number in vector])
    build_into(engine, tmp_path / "tiny", server.url)
    for vector in read_probes(tmp_path / "huge") + read_probes(tmp_path / "tiny"):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


def test_another_width_in_the_middle_of_a_build_is_refused(
    engine: Engine, server: EmbeddingsServer, tmp_path: Path
) -> None:
    wide = edit_vectors(lambda vector: vector * 2)
    server.edit = lambda answer: answer if len(server.bodies) == 1 else wide(answer)
    assert read_error(engine, tmp_path, server.url) == (
        f"{server.url}/embeddings answered with vectors of 64 numbers, but the expander has 32; "
        "serve the model that it was built with, or build it again"
    )


def test_a_wrong_key_model_or_url_is_named(engine: Engine, tiny: Encoder, tmp_path: Path) -> None:
    with run_embeddings_server(tiny, api_key="right") as server:
        assert "status 401; set encoder.api_key" in read_error(engine, tmp_path, server.url, api_key="wrong")
        assert "has the model 'huge'" in read_error(engine, tmp_path, server.url, api_key="right", model="huge")
        assert read_error(engine, tmp_path, server.url, model="") == (
            f"{server.url} may have several models; name one with --encoder-model"
        )
        shortened = server.url.removesuffix("/v1")
        assert "check that the URL ends in /v1" in read_error(engine, tmp_path, shortened, api_key="right")
    with_key = server.url.replace("http://", "http://me:secret@")
    message = read_error(engine, tmp_path, with_key)
    assert message == "--encoder is not a usable URL: put the key into encoder.api_key; a URL is shown in logs"


def test_a_later_build_refuses_another_model_of_the_same_name(
    engine: Engine, server: EmbeddingsServer, tmp_path: Path
) -> None:
    build_into(engine, tmp_path, server.url)
    record = (tmp_path / "expander.json").read_bytes()
    server.edit = edit_vectors(lambda vector: vector[::-1])
    with pytest.raises(EndpointError, match="answers with other vectors for 'tiny' than when the expander was built"):
        build_into(engine, tmp_path, server.url)
    assert (tmp_path / "expander.json").read_bytes() == record
    with pytest.raises(SettingsError, match="holds an expander of other settings"):
        build_into(engine, tmp_path, server.url, query_prefix="query: ")


def test_a_build_warns_of_an_encoder_that_does_not_tell_documents_apart(
    engine: Engine, server: EmbeddingsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = {f"long-{number}": f"{number} " + " ".join([*TEXTS.values()][number : number + 8]) for number in range(30)}
    fill_index(engine, f"{INDEX}-long", texts)
    endpoint = EncoderEndpointSettings(model="tiny")
    request = BuildRequest(f"{INDEX}-long", "contents", tmp_path / "a", encoder=server.url, endpoint=endpoint)
    with caplog.at_level(logging.WARNING, "querylift"):
        build_expander(engine, request)
    remove_indices(engine, f"{INDEX}-long")
    assert any(
        "the encoder finds the second half of only" in message and "name another encoder" in message
        for message in caplog.messages
    )


def test_the_record_is_plain_json_without_a_key(engine: Engine, server: EmbeddingsServer, tmp_path: Path) -> None:
    build_into(engine, tmp_path, server.url, api_key="a-secret")
    assert set(json.loads((tmp_path / "expander.json").read_text())["endpoint"]) == {
        "url", "model", "query_prefix", "document_prefix", "query_input_type", "document_input_type", "max_chars", "probes",
    }  # fmt: skip
