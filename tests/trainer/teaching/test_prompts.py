"""The chat messages of a request, and the estimate of its tokens."""

from dataclasses import replace

import pytest

from querylift.trainer.candidates import Candidate
from querylift.trainer.teaching.prompts import (
    FewShotExample,
    build_chat_messages,
    build_request_messages,
    estimate_usage,
    list_requests,
    select_examples,
)
from tests.helpers.teacher_server import QUERIES, make_plan


def _make_request(query_id: str, query: str) -> Candidate:
    return Candidate(query_id, query, "few-shot", "m", "")


def test_a_zero_shot_prompt_is_a_task_and_the_query_on_one_line() -> None:
    system, user = build_chat_messages("what\n causes\x00a rainbow")
    assert (system["role"], user) == ("system", {"role": "user", "content": "Search query: what causes a rainbow"})
    assert "40 words" in system["content"]


def test_a_few_shot_prompt_shows_examples_as_answered_questions() -> None:
    messages = build_chat_messages("q", [FewShotExample("1", "first", "one"), FewShotExample("2", "second", "two")])
    assert messages[0] == build_chat_messages("q")[0]
    assert [(message["role"], message["content"]) for message in messages[1:]] == [
        ("user", "Search query: first"), ("assistant", "one"),
        ("user", "Search query: second"), ("assistant", "two"),
        ("user", "Search query: q"),
    ]  # fmt: skip


def test_the_requested_query_is_never_an_example_by_id_or_by_text() -> None:
    examples = [FewShotExample("1", "a", "one"), FewShotExample("2", "b", "two"), FewShotExample("3", "c", "three")]
    assert [example.query_id for example in select_examples(_make_request("9", "z"), examples, count=2)] == ["1", "2"]
    assert [example.query_id for example in select_examples(_make_request("1", "a"), examples, count=2)] == ["2", "3"]
    assert [example.query_id for example in select_examples(_make_request("9", " B"), examples, count=2)] == ["1", "3"]


def test_only_a_few_shot_request_shows_examples() -> None:
    examples = [FewShotExample("1", "a", "one")]
    request = _make_request("9", "q")
    assert build_request_messages(request, examples, shots=1) == build_chat_messages("q", examples)
    assert build_request_messages(replace(request, method="zero-shot"), examples, shots=1) == build_chat_messages("q")


def test_an_estimate_counts_every_answer_at_full_length() -> None:
    plan = make_plan(samples=2, price_in=1.0, price_out=10.0)
    requests = list(list_requests(QUERIES, plan))
    usage = estimate_usage(requests, plan)
    assert (usage.requests, usage.tokens_out) == (6, 120)
    assert 6 * 60 < usage.tokens_in < 6 * 140
    assert usage.cost == pytest.approx((usage.tokens_in + 10 * 120) / 1e6)
    assert estimate_usage(requests, make_plan()).cost is None
    examples = [FewShotExample("9", "z", "word " * 60)]
    few_shot_requests = list(list_requests(QUERIES, make_plan(prompts=("few-shot",))))
    assert estimate_usage(few_shot_requests, plan, examples=examples).tokens_in > usage.tokens_in / 2
    chinese_request = Candidate("1", "夫妻一方经营个体工商户", "zero-shot", "m", "")
    empty_request = replace(chinese_request, query="")
    tokens_of_empty = estimate_usage([empty_request], plan).tokens_in
    assert estimate_usage([chinese_request], plan).tokens_in - tokens_of_empty == 11
