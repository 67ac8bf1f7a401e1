"""A run of requests whose answers are mostly empty stops, and says why. Thinking is switched off on request."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from querylift.plugin.errors import GeneratorError
from querylift.trainer.candidates import read_candidates
from querylift.trainer.chat.empty_answers import EmptyAnswerMeter
from querylift.trainer.teaching.prompts import list_requests
from querylift.trainer.teaching.teacher import TeachingResult, ask_teacher
from tests.helpers.teacher_server import PASSAGE, Handler, TeacherServer, make_answer, make_plan

QUERIES = {str(number): f"query number {number}" for number in range(60)}


def _make_hybrid_model(*, empty: int, of: int) -> Handler:
    """Return a model that thinks until its tokens are spent, in so many of its answers, unless it is asked not to think."""
    request_count = 0

    async def handle(request: web.Request) -> web.Response:
        nonlocal request_count
        request_count += 1
        body = await request.json()
        is_thinking = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
        if is_thinking and request_count % of < empty:
            return make_answer("<think>The user wants")
        return make_answer(f"<think>\n\n</think>\n\n{PASSAGE}")

    return handle


def _ask(server: TeacherServer, out: Path, *, answered_before: int = 0, **changes: Any) -> TeachingResult:
    async def run() -> TeachingResult:
        async with server:
            plan = make_plan(server.url, **{"concurrency": 1, **changes})
            requests = list(list_requests(QUERIES, plan))
            return await ask_teacher(requests, plan, out, api_key="k", answered_before=answered_before)

    return asyncio.run(run())


def test_a_teacher_that_mostly_thinks_stops_the_run_with_cause_and_remedy(tmp_path: Path) -> None:
    server = TeacherServer(_make_hybrid_model(empty=3, of=4))
    with pytest.raises(GeneratorError) as caught:
        _ask(server, tmp_path / "out.jsonl")
    assert str(caught.value) == (
        f"15 of 20 answers of m at {server.url} are empty, probably because it spends its tokens thinking: "
        "give --no-thinking, or raise --max-tokens above 20"
    )
    assert len(list(read_candidates(tmp_path / "out.jsonl"))) == 5


def test_a_server_that_ignores_the_switch_is_said(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        return make_answer("")

    with pytest.raises(
        GeneratorError, match=r"20 of 20 .* though it was asked not to think: raise --max-tokens above 20"
    ):
        _ask(TeacherServer(handle), tmp_path / "out.jsonl", enable_thinking=False)


def test_a_teacher_that_is_asked_not_to_think_answers_all_requests(tmp_path: Path) -> None:
    server = TeacherServer(_make_hybrid_model(empty=3, of=4))
    assert _ask(server, tmp_path / "out.jsonl", enable_thinking=False, extra_body={"top_p": 0.8}).written == 60
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in server.bodies)
    assert all(body["top_p"] == 0.8 for body in server.bodies)
    assert {candidate.text for candidate in read_candidates(tmp_path / "out.jsonl")} == {
        "Sunlight bends in drops of water."
    }


def test_some_empty_answers_do_not_stop_a_run(tmp_path: Path) -> None:
    result = _ask(TeacherServer(_make_hybrid_model(empty=1, of=3)), tmp_path / "out.jsonl")
    assert (result.written, result.failed) == (40, 20)


def test_answers_of_earlier_runs_count_so_that_a_few_hopeless_queries_do_not_stop_a_run(tmp_path: Path) -> None:
    server = TeacherServer(_make_hybrid_model(empty=3, of=4))
    assert _ask(server, tmp_path / "out.jsonl", answered_before=1000).failed == 45


@pytest.mark.parametrize(
    ("empty", "full", "has_too_many"), [(19, 0, False), (20, 0, True), (10, 10, False), (11, 9, True), (11, 8, False)]
)
def test_more_than_half_of_twenty_answers_are_too_many(empty: int, full: int, has_too_many: bool) -> None:
    meter = EmptyAnswerMeter()
    for is_empty in [True] * empty + [False] * full:
        meter.count_answer(is_empty=is_empty)
    assert meter.has_too_many == has_too_many


def test_two_hundred_requests_reach_the_server_at_the_same_time(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        if server.open_requests == 200:
            gate.set()
        await asyncio.wait_for(gate.wait(), 30)
        return make_answer()

    server = TeacherServer(handle)
    result = _ask(server, tmp_path / "out.jsonl", concurrency=200, samples=4)
    assert (server.most_open_requests, result.written) == (200, 240)
    assert result.throughput.texts_per_second == pytest.approx(240 / result.throughput.seconds)
