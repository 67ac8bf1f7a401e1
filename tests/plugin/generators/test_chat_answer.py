"""The odd answers of chat endpoints: parts, thinking without an answer, and refusals."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from querylift.plugin.broker import ExpansionBroker, Question
from querylift.plugin.cache import MemoryCache
from querylift.plugin.errors import GeneratorError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.chat_answer import AnswerRefused, read_chat_answer
from querylift.plugin.generators.http import HttpGenerator
from querylift.plugin.generators.table import TableGenerator
from querylift.plugin.outcome import Outcome
from querylift.plugin.refusals import is_refusal
from querylift.plugin.testing import ManualClock

REFUSAL = "I'm sorry, but I can't assist with that request."


def _make_answer(content: Any, *, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "choices": [{"finish_reason": finish_reason, "message": {"role": "assistant", "content": content, **message}}]
    }


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (_make_answer("Urlopen opens pages."), "Urlopen opens pages."),
        (_make_answer("Urlopen opens", finish_reason="length"), "Urlopen opens"),
        (_make_answer(""), ""),
        (
            _make_answer([{"type": "text", "text": "Urlopen "}, {"type": "text", "text": "opens pages."}]),
            "Urlopen opens pages.",
        ),
        (_make_answer([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Urlopen"}]), "Urlopen"),
        (_make_answer(["Urlopen", " opens"]), "Urlopen opens"),
        (_make_answer([{"type": "output_text", "text": "Urlopen"}, 5, None]), "Urlopen"),
        (_make_answer("Urlopen opens pages.", reasoning_content="First I consider"), "Urlopen opens pages."),
    ],
)
def test_the_text_of_an_answer_is_read(answer: dict[str, Any], text: str) -> None:
    assert read_chat_answer(answer) == text


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (_make_answer(None, reasoning_content="First I consider"), "the endpoint's answer holds only thinking"),
        (_make_answer(None, reasoning="First I consider"), "the endpoint's answer holds only thinking"),
        (_make_answer("", finish_reason="length"), "the endpoint's answer holds only thinking"),
        (_make_answer("<think>First I consider", finish_reason="length"), "the endpoint's answer holds only thinking"),
        (
            _make_answer([{"type": "thinking", "thinking": "First"}], reasoning="x"),
            "the endpoint's answer holds only thinking",
        ),
        (_make_answer(None), "the endpoint's answer holds no text (its content is null)"),
        (
            _make_answer([{"type": "image"}]),
            "the endpoint's answer holds no text (its content is a list of other parts)",
        ),
        (_make_answer(7), "the endpoint's answer holds no text (its content is a int of other parts)"),
        ({"choices": [{"message": {}}]}, "the endpoint's answer is not a chat completion"),
        ({"choices": [None]}, "the endpoint's answer is not a chat completion"),
        ("a web page", "the endpoint's answer is not a chat completion"),
    ],
)
def test_an_answer_without_text_is_an_error_that_says_why(answer: Any, problem: str) -> None:
    with pytest.raises(GeneratorError) as caught:
        read_chat_answer(answer)
    assert str(caught.value).startswith(problem)
    assert not isinstance(caught.value, AnswerRefused)


@pytest.mark.parametrize(
    "answer",
    [
        _make_answer(REFUSAL),
        _make_answer(None, refusal="I cannot help with that."),
        _make_answer("Partly", finish_reason="content_filter"),
        _make_answer("<think>This is not allowed.</think>I cannot provide that."),
    ],
)
def test_a_refusal_is_noticed(answer: dict[str, Any]) -> None:
    with pytest.raises(AnswerRefused):
        read_chat_answer(answer)


@pytest.mark.parametrize(
    "text",
    [
        REFUSAL,
        "I’m sorry, I cannot help you with this.",
        "Sorry, but this is not possible.",
        "I apologize, but I am unable to write about this topic.",
        "I cannot provide medical advice. Please see a doctor.",
        "Unfortunately, I'm not able to answer that.",
        "I won't be able to assist with that.",
        "As an AI language model, I do not have access to current prices.",
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
        "Lo siento, pero no puedo ayudar con eso.",
        "Je suis désolé, mais je ne peux pas répondre.",
        "抱歉，我无法回答这个问题。",
        "申し訳ありませんが、お答えできません。",
    ],
)
def test_the_refusals_of_common_models_are_known(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I can't help falling in love with you is a song by Elvis Presley.",
        "I cannot help but wonder, wrote the author.",
        "Sorry is a song by Justin Bieber from 2015.",
        "I'm Sorry is the third studio album of the band. It was released in May.",
        "An apology is an expression of regret.",
        "AI language models can answer questions.",
        "People who are unable to write may dictate.",
        "Sunlight bends in drops of water. I can't assist with that.",
    ],
)
def test_a_passage_that_only_resembles_a_refusal_is_kept(text: str) -> None:
    assert not is_refusal(text)


async def _answer_through_broker(answer: dict[str, Any]) -> Outcome:
    async def complete(request: web.Request) -> web.Response:
        return web.json_response(answer)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    generator = HttpGenerator(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", model="m", max_seconds=5)
    clock = ManualClock()
    broker = ExpansionBroker(generator, MemoryCache(9, clock), clock=clock)
    try:
        await generator.start()
        return (await broker.answer(Question(ExpansionRequest("download a page"), 1005))).outcome
    finally:
        await broker.close()
        await runner.cleanup()


def test_a_refused_query_gets_no_expansion_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert asyncio.run(_answer_through_broker(_make_answer(REFUSAL))) == Outcome("skipped", "nothing")
    assert caplog.messages == ["a query stays without an expansion: the endpoint refused to answer"]


def test_an_answer_of_thinking_alone_is_a_failure_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    answer = _make_answer(None, reasoning_content="First I consider")
    assert asyncio.run(_answer_through_broker(answer)) == Outcome("error", "generator")
    assert caplog.messages == [
        "no expansion: the endpoint's answer holds only thinking; "
        "set enable_thinking = false in [http], or name a model that does not think"
    ]


def test_a_refusal_in_a_table_is_not_served_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text(f'{{"query": "q", "text": "{REFUSAL}"}}\n{{"query": "q", "text": "words"}}\n', encoding="utf-8")

    async def look_up() -> Expansion | None:
        table = TableGenerator(path)
        await table.start()
        return await table.expand(ExpansionRequest("q"))

    assert asyncio.run(look_up()) == Expansion(text="words")
    assert caplog.messages == [f"{path}: 1 lines have no words or hold a model's refusal, and are left out"]
