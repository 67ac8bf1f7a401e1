"""Asking a teacher for grades, against a small server that answers as a test says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE, parse_scale
from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.trainer.judge.annotate_run import (
    AnnotatePlan,
    AnnotateResult,
    annotate_pairs,
    count_grades,
    estimate_annotating,
    find_ungraded_pairs,
)
from querylift.trainer.judge.annotations import Annotation, read_annotations
from querylift.trainer.judge.pair_choice import UngradedPair
from tests.helpers.judge_server import CRITERIA_GRADES, format_judge_answer, make_judge_handler
from tests.helpers.teacher_server import TeacherServer, make_answer, make_failing_handler

PAIRS = [UngradedPair("1", f"d{n}", "why is snow white", f"Document {n}.") for n in range(1, 4)]
MALFORMED = "I would say: 2 of 3."


def _make_plan(url: str = "http://127.0.0.1:9/v1", **changes: Any) -> AnnotatePlan:
    return replace(AnnotatePlan("m", url, max_tokens=60, concurrency=1), **changes)


def _annotate_missing(
    out: Path, server: TeacherServer, *, pairs: list[UngradedPair] = PAIRS, **changes: Any
) -> AnnotateResult:
    """Ask `server` for every grade that `out` lacks."""

    async def run() -> AnnotateResult:
        async with server:
            plan = _make_plan(server.url, **changes)
            ungraded = find_ungraded_pairs(pairs, out, model=plan.model, scale=plan.scale)
            return await annotate_pairs(ungraded, plan, out, api_key="sk-secret")

    return asyncio.run(run())


def test_valid_answers_become_annotations(tmp_path: Path) -> None:
    out, server = tmp_path / "out.jsonl", TeacherServer(make_judge_handler(format_judge_answer()))
    result = _annotate_missing(out, server, price_in=1.0, price_out=2.0)
    assert replace(result, cost=None) == AnnotateResult(asked=3, written=3, tokens_in=150, tokens_out=30)
    assert result.cost == pytest.approx(210 / 1e6)
    assert next(read_annotations(out, DEFAULT_SCALE)) == Annotation(
        "1", "d1", "why is snow white", "Document 1.", 2, "m", CRITERIA_GRADES, "It names the cause."
    )
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 60)
    assert "response_format" not in body
    assert set(server.authorizations) == {"Bearer sk-secret"}
    assert count_grades(out, DEFAULT_SCALE, model="m") == {0: 0, 1: 0, 2: 3, 3: 0}
    assert count_grades(out, DEFAULT_SCALE, model="n") == {0: 0, 1: 0, 2: 0, 3: 0}


def test_a_malformed_answer_is_sent_back_once_with_its_fault(tmp_path: Path) -> None:
    answers = (format_judge_answer(grade=7), format_judge_answer(grade=3))
    server = TeacherServer(make_judge_handler(*answers, format_judge_answer(grade=0)))
    result = _annotate_missing(tmp_path / "out.jsonl", server)
    assert (result.asked, result.written, result.repaired, result.dropped) == (3, 3, 1, 0)
    assert [message["role"] for message in server.bodies[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert server.bodies[1]["messages"][2]["content"] == answers[0]
    assert '"grade" is 7; it must be a whole number from 0 to 3' in server.questions[1]
    assert [row.grade for row in read_annotations(tmp_path / "out.jsonl", DEFAULT_SCALE)] == [3, 0, 0]


def test_a_pair_with_two_malformed_answers_is_dropped_and_counted(tmp_path: Path) -> None:
    server = TeacherServer(make_judge_handler(MALFORMED, MALFORMED, format_judge_answer()))
    result = _annotate_missing(tmp_path / "out.jsonl", server)
    assert result == AnnotateResult(asked=3, written=2, dropped=1, tokens_in=200, tokens_out=40)
    assert len(server.bodies) == 4


def test_refusals_and_failures_are_counted(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        question = (await request.json())["messages"][1]["content"]
        if "Document 1." in question:
            return make_answer("I'm sorry, but I can't assist with that request.")
        if "Document 2." in question:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        return make_answer(format_judge_answer())

    result = _annotate_missing(tmp_path / "out.jsonl", TeacherServer(handle))
    assert (result.asked, result.written, result.refused, result.failed, result.dropped) == (3, 1, 1, 1, 0)


def test_a_second_run_asks_only_for_what_the_file_lacks_of_the_same_model(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    _annotate_missing(out, TeacherServer(make_judge_handler(MALFORMED, MALFORMED, format_judge_answer())))
    server = TeacherServer(make_judge_handler(format_judge_answer()))
    assert _annotate_missing(out, server).written == 1
    assert ["Document 1." in question for question in server.questions] == [True]
    assert _annotate_missing(out, TeacherServer(make_judge_handler(format_judge_answer()))) == AnnotateResult()
    other_model = TeacherServer(make_judge_handler(format_judge_answer(grade=0)))
    assert _annotate_missing(out, other_model, model="n").written == 3
    assert [row.model for row in read_annotations(out, DEFAULT_SCALE)] == ["m"] * 3 + ["n"] * 3


def test_a_line_that_a_killed_run_left_incomplete_is_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    _annotate_missing(out, TeacherServer(make_judge_handler(format_judge_answer())))
    text = out.read_bytes()
    out.write_bytes(text[:-20])
    server = TeacherServer(make_judge_handler(format_judge_answer()))
    assert _annotate_missing(out, server).written == 1
    assert out.read_bytes() == text


def test_a_query_id_that_stands_for_another_query_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    _annotate_missing(out, TeacherServer(make_judge_handler(format_judge_answer())))
    pair = UngradedPair("1", "d9", "another query", "Text.")
    with pytest.raises(SettingsError, match=r"query id .1. stands for another query in .*\.jsonl; name another --out"):
        find_ungraded_pairs([pair], out, model="m", scale=DEFAULT_SCALE)


def test_the_run_stops_before_it_exceeds_the_token_budget(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        return make_answer(format_judge_answer(), tokens_in=380, tokens_out=50)

    # A request needs about 380 tokens with 60 for its answer.
    result = _annotate_missing(tmp_path / "out.jsonl", TeacherServer(handle), token_budget=900)
    assert (result.asked, result.written, result.left) == (2, 2, 1)
    assert result.tokens_in + result.tokens_out <= 900
    assert _annotate_missing(tmp_path / "out.jsonl", TeacherServer(handle)).written == 1


def test_a_repair_beyond_the_token_budget_is_left(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        return make_answer(MALFORMED, tokens_in=380, tokens_out=50)

    result = _annotate_missing(tmp_path / "out.jsonl", TeacherServer(handle), token_budget=500)
    assert (result.asked, result.written, result.dropped, result.left) == (1, 0, 0, 3)


def test_several_pairs_are_asked_at_the_same_time(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        return make_answer(format_judge_answer())

    server = TeacherServer(handle)
    assert _annotate_missing(tmp_path / "out.jsonl", server, concurrency=3).written == 3
    assert server.most_open_requests == 3


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "does not take the API key; set QUERYLIFT_TEACHER_API_KEY"), (404, "knows no model 'm'")],
)
def test_a_refused_key_ends_the_run_without_showing_it(tmp_path: Path, status: int, sentence: str) -> None:
    server = TeacherServer(make_failing_handler(status, times=99))
    with pytest.raises(SettingsError, match=sentence) as caught:
        _annotate_missing(tmp_path / "out.jsonl", server)
    assert "sk-secret" not in f"{caught.value!r}{caught.value.__cause__!r}"
    assert len(server.bodies) == 1


def test_failures_in_a_row_end_the_run_and_earlier_annotations_stay(tmp_path: Path) -> None:
    pairs = [UngradedPair("1", f"d{n}", "q", "d") for n in range(9)]
    answers = iter([make_answer(format_judge_answer())])

    async def handle(request: web.Request) -> web.Response:
        return next(answers, web.json_response({"error": {"message": "down"}}, status=500))

    with pytest.raises(GeneratorError, match=r"failed 5 requests in a row \(500 .*what it wrote before is kept"):
        _annotate_missing(tmp_path / "out.jsonl", TeacherServer(handle), pairs=pairs, max_retries=0)
    assert len(list(read_annotations(tmp_path / "out.jsonl", DEFAULT_SCALE))) == 1


def test_json_mode_is_asked_for_with_and_without_a_schema(tmp_path: Path) -> None:
    for json_format in ("object", "schema"):
        server = TeacherServer(make_judge_handler(format_judge_answer()))
        _annotate_missing(tmp_path / f"{json_format}.jsonl", server, json_format=json_format)
        response_format = server.bodies[0]["response_format"]
        assert response_format["type"] == "json_object"
        assert ("schema" in response_format) == (json_format == "schema")
    assert response_format["schema"]["properties"]["grade"] == {"type": "integer", "enum": [0, 1, 2, 3]}
    with pytest.raises(SettingsError, match="json_format is 'xml'; choose among none, object, schema"):
        _make_plan(json_format="xml")


def test_the_estimate_counts_one_request_for_each_pair() -> None:
    usage = estimate_annotating(PAIRS, _make_plan(scale=parse_scale("umbrela"), price_out=1.0))
    assert (usage.requests, usage.tokens_out) == (3, 180)
    assert usage.cost == pytest.approx(180 / 1e6)
    assert 600 < usage.tokens_in < 1500
