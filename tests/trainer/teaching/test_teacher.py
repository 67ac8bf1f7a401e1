"""Asking a teacher over HTTP: a real model behind llama-cpp-python's server, and a small server that misbehaves."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from querylift.index_tools.proxy_process import find_free_ports
from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.trainer.candidates import read_candidates
from querylift.trainer.teaching.plan import TeachingPlan
from querylift.trainer.teaching.prompts import FewShotExample, estimate_usage, list_requests
from querylift.trainer.teaching.teacher import TeachingResult, ask_teacher, find_unanswered_requests
from tests.helpers.llama_server import run_llama_server
from tests.helpers.teacher_server import (
    PASSAGE,
    QUERIES,
    TeacherServer,
    make_answer,
    make_failing_handler,
    make_plan,
)


def _ask_for_missing(tmp_path: Path, server: TeacherServer, *, api_key: str = "k", **changes: Any) -> TeachingResult:
    """Ask `server` for every answer that out.jsonl lacks."""

    async def run() -> TeachingResult:
        async with server:
            plan, out = make_plan(server.url, **changes), tmp_path / "out.jsonl"
            return await ask_teacher(
                find_unanswered_requests(list_requests(QUERIES, plan), out), plan, out, api_key=api_key
            )

    return asyncio.run(run())


def test_answers_are_cleaned_counted_and_written_with_their_request(tmp_path: Path) -> None:
    server = TeacherServer()
    result = _ask_for_missing(tmp_path, server, price_in=1.0, price_out=2.0)
    assert replace(result, cost=None) == TeachingResult(written=3, tokens_in=150, tokens_out=30)
    assert result.cost == pytest.approx(210 / 1e6)
    candidate = min(read_candidates(tmp_path / "out.jsonl"), key=lambda candidate: candidate.query_id)
    assert (candidate.query_id, candidate.query, candidate.method, candidate.model) == (
        "1",
        "what causes a rainbow",
        "zero-shot",
        "m",
    )
    assert candidate.text == "Sunlight bends in drops of water."
    assert candidate.params == {"temperature": 0.7, "sample": 0, "max_tokens": 20, "prompt": "teacher-2", "seed": 0}
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.7, 20)
    assert len({body["seed"] for body in server.bodies}) == 3
    assert set(server.authorizations) == {"Bearer k"}


def test_an_answer_without_words_is_counted_and_not_written(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        query = (await request.json())["messages"][-1]["content"]
        return make_answer(" " if "cats" in query else PASSAGE)

    assert _ask_for_missing(tmp_path, TeacherServer(handle)) == TeachingResult(
        written=2, empty=1, tokens_in=150, tokens_out=30
    )
    assert {c.query_id for c in read_candidates(tmp_path / "out.jsonl")} == {"1", "3"}


def test_an_answer_that_stopped_at_the_token_limit_did_not_end(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        query = (await request.json())["messages"][-1]["content"]
        return make_answer("Cats purr when", finish_reason="length") if "cats" in query else make_answer()

    result = _ask_for_missing(tmp_path, TeacherServer(handle))
    assert (result.written, result.without_end) == (3, 1)
    ends = {candidate.query_id: candidate.ended for candidate in read_candidates(tmp_path / "out.jsonl")}
    assert ends == {"1": True, "2": False, "3": True}


def test_refusals_are_counted_and_not_written(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        query = (await request.json())["messages"][-1]["content"]
        return make_answer("I'm sorry, but I can't assist with that request." if "cats" in query else PASSAGE)

    assert _ask_for_missing(tmp_path, TeacherServer(handle)) == TeachingResult(
        written=2, refused=1, tokens_in=150, tokens_out=30
    )


def test_a_content_of_parts_is_joined(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        parts = [
            {"type": "thinking", "thinking": "hm"},
            {"type": "text", "text": "Sunlight "},
            {"type": "text", "text": "bends."},
        ]
        return make_answer(parts)

    assert _ask_for_missing(tmp_path, TeacherServer(handle)).written == 3
    assert {c.text for c in read_candidates(tmp_path / "out.jsonl")} == {"Sunlight bends."}


@pytest.mark.parametrize("content", [None, "<think>First I consider"])
def test_a_teacher_that_only_thinks_is_said_and_its_tokens_are_counted(tmp_path: Path, content: str | None) -> None:
    async def handle(request: web.Request) -> web.Response:
        return make_answer(content, reasoning_content="First I consider")

    with pytest.raises(
        GeneratorError,
        match=r"3 requests in a row \(the endpoint's answer holds only thinking\); probably because it spends its tokens "
        "thinking: give --no-thinking, or raise --max-tokens above 20$",
    ):
        _ask_for_missing(tmp_path, TeacherServer(handle))


def test_a_second_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    _ask_for_missing(tmp_path, TeacherServer())
    idle_server = TeacherServer()
    assert _ask_for_missing(tmp_path, idle_server) == TeachingResult()
    assert idle_server.bodies == []
    assert _ask_for_missing(tmp_path, TeacherServer(), samples=2).written == 3
    assert [c.params["sample"] for c in read_candidates(tmp_path / "out.jsonl")] == [0, 0, 0, 1, 1, 1]


def test_a_request_is_retried_after_too_many_requests_and_after_a_server_error(tmp_path: Path) -> None:
    for status in (429, 503):
        folder = tmp_path / str(status)
        server = TeacherServer(make_failing_handler(status, times=2, headers={"retry-after-ms": "30"}))
        assert _ask_for_missing(folder, server, concurrency=1).written == 3
        assert len(server.bodies) == 5
        assert server.questions[:3] == ["Search query: what causes a rainbow"] * 3


def test_a_retry_waits_as_long_as_retry_after_says(tmp_path: Path) -> None:
    server = TeacherServer(make_failing_handler(429, times=1, headers={"Retry-After": "1"}))
    _ask_for_missing(tmp_path, server, concurrency=1)
    assert server.times_s[1] - server.times_s[0] >= 0.99


def test_a_failed_request_is_counted_and_sent_again_in_the_next_run(tmp_path: Path) -> None:
    assert _ask_for_missing(
        tmp_path, TeacherServer(make_failing_handler(400, times=1)), concurrency=1
    ) == TeachingResult(written=2, failed=1, tokens_in=100, tokens_out=20)
    assert {c.query_id for c in read_candidates(tmp_path / "out.jsonl")} == {"2", "3"}
    assert _ask_for_missing(tmp_path, TeacherServer()).written == 1


def test_failures_in_a_row_end_the_run_and_earlier_answers_stay(tmp_path: Path) -> None:
    request_count = 0

    async def handle(request: web.Request) -> web.Response:
        nonlocal request_count
        request_count += 1
        if request_count == 1:
            return make_answer()
        return web.json_response({"error": {"message": "out\nof memory"}}, status=500)

    with pytest.raises(GeneratorError) as caught:
        _ask_for_missing(tmp_path, TeacherServer(handle), samples=3, concurrency=1, max_retries=0)
    assert "failed 5 requests in a row (500 " in str(caught.value)
    assert "what it wrote before is kept: run the same command again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (request_count, len(list(read_candidates(tmp_path / "out.jsonl")))) == (6, 1)


def test_a_web_page_in_place_of_an_answer_is_a_failure(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>", content_type="text/html")

    with pytest.raises(GeneratorError, match=r"failed 3 requests in a row \(an answer without choices\)"):
        _ask_for_missing(tmp_path, TeacherServer(handle))


def test_an_unreachable_teacher_is_reported_in_one_sentence(tmp_path: Path) -> None:
    plan = make_plan(f"http://127.0.0.1:{find_free_ports(1)[0]}/v1", max_retries=1)
    with pytest.raises(GeneratorError, match=r"failed 3 requests in a row \(Connection error"):
        asyncio.run(ask_teacher(list(list_requests(QUERIES, plan)), plan, tmp_path / "out.jsonl", api_key="k"))


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "does not take the API key; set QUERYLIFT_TEACHER_API_KEY"), (403, "does not let the API key use 'm'"),
     (404, "knows no model 'm', or is no OpenAI-compatible API; name another --model")],
)  # fmt: skip
def test_a_refused_key_or_model_ends_the_run_at_once(tmp_path: Path, status: int, sentence: str) -> None:
    server = TeacherServer(make_failing_handler(status, times=99))
    with pytest.raises(SettingsError) as caught:
        _ask_for_missing(tmp_path, server, api_key="sk-secret", concurrency=1)
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(server.bodies) == 1


def test_a_run_stops_before_it_exceeds_the_token_budget_and_a_second_run_goes_on(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        return make_answer(tokens_in=100, tokens_out=20)

    # A request begins only while the budget has room for its about 125 tokens. It then uses 120 of them.
    result = _ask_for_missing(tmp_path, TeacherServer(handle), token_budget=400)
    assert (result.left, result.written) in {(1, 2), (0, 3)}
    assert result.tokens_in + result.tokens_out <= 400
    first_run = _ask_for_missing(tmp_path / "b", TeacherServer(handle), samples=3, token_budget=400)
    assert first_run.written + first_run.left == 9
    assert first_run.left > 5
    assert _ask_for_missing(tmp_path / "b", TeacherServer(handle), samples=3).written == first_run.left


def test_concurrency_limits_the_open_requests(tmp_path: Path) -> None:
    async def answer_slowly(request: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        return make_answer()

    server = TeacherServer(answer_slowly)
    assert _ask_for_missing(tmp_path, server, samples=4, concurrency=3).written == 12
    assert server.most_open_requests == 3


@pytest.mark.model
def test_a_real_model_writes_several_passages_for_a_query(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    examples = [FewShotExample("8", "why is the sky blue", "Air scatters blue light more than red light.")]
    with run_llama_server(tmp_path) as url:
        plan = TeachingPlan(
            "smollm2",
            url,
            samples=2,
            temperatures=(0.9,),
            max_tokens=12,
            concurrency=1,
            prompts=("zero-shot", "few-shot"),
        )
        requests = find_unanswered_requests(list_requests({"1": "what causes a rainbow"}, plan), out)
        result = asyncio.run(ask_teacher(requests, plan, out, api_key="none", examples=examples))
    candidates = list(read_candidates(out))
    assert (result.written, result.failed, len(candidates)) == (4, 0, 4)
    assert len({candidate.text for candidate in candidates}) > 2
    assert [c.method for c in candidates] == ["zero-shot", "few-shot", "zero-shot", "few-shot"]
    assert 4 * 60 < result.tokens_in < 4 * 300
    assert 4 <= result.tokens_out <= 4 * 12
    assert 0.5 < estimate_usage(requests, plan, examples=examples).tokens_in / result.tokens_in < 2
    assert find_unanswered_requests(list_requests({"1": "what causes a rainbow"}, plan), out) == []
