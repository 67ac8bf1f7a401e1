"""`querylift train sample --endpoint`: a student that a server runs is sampled with many requests at the same time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.plugin.expansion import STOP_STRINGS, build_prompt
from querylift.trainer.candidates import read_candidates
from querylift.trainer.commands.sample import sample as sample_command
from tests.helpers.teacher_server import QUERIES, Handler, TeacherServer, make_completion, make_failing_handler


def _write_queries(folder: Path, count: int = 3) -> Path:
    texts = [*QUERIES.values(), *(f"query number {number}" for number in range(count))][:count]
    path = folder / "queries.jsonl"
    lines = [json.dumps({"_id": str(number), "text": text}) for number, text in enumerate(texts, 1)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _sample(server: TeacherServer, queries: Path, out: Path, *options: str) -> Result:
    """Run the command against the server, and raise what it raises."""

    async def run() -> Result:
        async with server:
            arguments = ["my-student", str(queries), "--out", str(out), "--endpoint", server.url, *options]
            return await asyncio.to_thread(CliRunner().invoke, sample_command, arguments)

    result = asyncio.run(run())
    if result.exception is not None:
        raise result.exception
    return result


def _make_handler(text: str = "Drops of water.", *, finish_reason: str = "stop") -> Handler:
    async def handle(request: web.Request) -> web.Response:
        return make_completion(text, finish_reason=finish_reason)

    return handle


def test_the_served_prompt_is_sent_with_the_stop_rule_and_a_seed_of_its_own(tmp_path: Path) -> None:
    server, out = TeacherServer(_make_handler()), tmp_path / "own.jsonl"
    result = _sample(server, _write_queries(tmp_path), out, "--samples", "2")
    assert "6 passages for 3 queries written to" in result.stdout
    assert "candidates per second" in result.stdout
    prompts = sorted(body["prompt"] for body in server.bodies)
    assert prompts == sorted(build_prompt(query) for query in QUERIES.values() for _ in range(2))
    assert len({body["seed"] for body in server.bodies}) == 6
    expected = {"model": "my-student", "max_tokens": 64, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    assert all(body.items() >= expected.items() and body["stop"] == list(STOP_STRINGS) for body in server.bodies)
    candidates = list(read_candidates(out))
    assert {(c.query_id, c.params["sample"], c.text) for c in candidates} == {
        (query_id, number, "Drops of water.") for query_id in QUERIES for number in range(2)
    }
    assert {(c.model, c.method) for c in candidates} == {("my-student", "student")}
    results = _read_results(out)
    assert results["per_second"] > 0 and (results["written"], results["without_end"]) == (6, 0)


def _read_results(out: Path) -> dict[str, Any]:
    manifest = json.loads(out.with_name(out.name + ".manifest.json").read_text(encoding="utf-8"))
    assert manifest["done"]
    return dict(manifest["results"])


def test_a_greedy_request_has_no_seed_and_a_cut_passage_is_counted(tmp_path: Path) -> None:
    server, out = TeacherServer(_make_handler(finish_reason="length")), tmp_path / "own.jsonl"
    result = _sample(server, _write_queries(tmp_path), out, "--greedy")
    assert result.stdout.splitlines()[1] == "3 of the 3 passages there did not end within 64 tokens"
    assert [candidate.ended for candidate in read_candidates(out)] == [False] * 3
    assert _read_results(out)["without_end"] == 3
    assert all(body["temperature"] == 0 and not {"seed", "top_k", "top_p"} & body.keys() for body in server.bodies)


def test_as_many_requests_are_in_flight_as_concurrency_says(tmp_path: Path) -> None:
    server = TeacherServer(_make_gate(64))
    out = tmp_path / "own.jsonl"
    _sample(server, _write_queries(tmp_path, 16), out, "--samples", "8", "--concurrency", "64")
    assert server.most_open_requests == 64
    assert len(server.bodies) == len(list(read_candidates(out))) == 128


def _make_gate(count: int) -> Handler:
    """Return a handler that answers nobody before `count` requests are open at the same time."""
    open_count, gate = 0, asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        nonlocal open_count
        open_count += 1
        if open_count >= count:
            gate.set()
        await asyncio.wait_for(gate.wait(), 20)
        return make_completion("Drops of water.")

    return handle


def test_a_second_run_asks_only_for_what_the_file_lacks(tmp_path: Path) -> None:
    queries, out = _write_queries(tmp_path), tmp_path / "own.jsonl"
    failing = TeacherServer(make_failing_handler(400, times=99))
    with pytest.raises(GeneratorError, match=r"the model at .* failed 5 requests in a row"):
        _sample(failing, queries, out, "--samples", "2", "--concurrency", "1")
    _sample(TeacherServer(_make_handler()), queries, out, "--samples", "2")
    server = TeacherServer(_make_handler())
    _sample(server, queries, out, "--samples", "3")
    assert len(server.bodies) == 3
    _sample(server, queries, out, "--samples", "3")
    assert len(server.bodies) == 3


def test_a_served_model_that_is_no_student_stops_the_run_and_is_said(tmp_path: Path) -> None:
    server = TeacherServer(_make_handler("<think>"))
    with pytest.raises(GeneratorError) as caught:
        _sample(server, _write_queries(tmp_path, 40), tmp_path / "own.jsonl", "--samples", "1", "--concurrency", "1")
    assert str(caught.value) == (
        f"20 of 20 answers of my-student at {server.url} are empty, probably because it is no student and does not know "
        "the prompt: serve a student, or measure a chat model with the generator http"
    )


@pytest.mark.parametrize("text", [None, 3])
def test_an_answer_of_another_shape_is_a_failure(tmp_path: Path, text: object) -> None:
    async def handle(request: web.Request) -> web.Response:
        return make_completion(text)

    with pytest.raises(GeneratorError, match="is not a completion"):
        _sample(TeacherServer(handle), _write_queries(tmp_path), tmp_path / "own.jsonl", "--greedy")


def test_concurrency_without_an_endpoint_is_refused(tmp_path: Path) -> None:
    arguments = ["made:qwen3", str(_write_queries(tmp_path)), "--out", str(tmp_path / "o.jsonl"), "--concurrency", "4"]
    result = CliRunner().invoke(sample_command, arguments)
    assert isinstance(result.exception, SettingsError)
    assert str(result.exception) == "--concurrency 4 needs a server; give --endpoint, or leave --concurrency out"
