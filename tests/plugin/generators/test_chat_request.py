"""The keys that a request to a chat endpoint gets beside Querylift's own, from the settings to the wire."""

import asyncio
from datetime import date
from typing import Any

import pytest

from querylift.plugin.errors import GeneratorError, SettingsError
from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.chat_request import build_extra_body, parse_extra_body
from querylift.plugin.generators.factory import make_generator
from querylift.plugin.settings import load_settings, parse_settings
from tests.helpers.teacher_server import TeacherServer, make_answer

NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("extra_body", "enable_thinking", "expected"),
    [
        ({}, None, {}),
        ({}, False, NO_THINKING),
        ({"top_k": 20}, True, {"top_k": 20, "chat_template_kwargs": {"enable_thinking": True}}),
        ({"chat_template_kwargs": {"a": 1}}, False, {"chat_template_kwargs": {"a": 1, "enable_thinking": False}}),
        (NO_THINKING, False, NO_THINKING),
        (NO_THINKING, None, NO_THINKING),
    ],
)
def test_the_switch_for_thinking_joins_the_keys(
    extra_body: dict[str, Any], enable_thinking: bool | None, expected: dict[str, Any]
) -> None:
    assert build_extra_body(extra_body, enable_thinking=enable_thinking) == expected


@pytest.mark.parametrize(
    ("extra_body", "problem"),
    [
        ({"messages": []}, "'messages' is a key that Querylift sets itself; leave it out"),
        ({"stream": True}, "'stream' is a key that Querylift sets itself; leave it out"),
        ({"day": date(2026, 1, 1)}, "a value is not JSON"),
        ({"x": float("nan")}, "a value is not JSON"),
        ({"chat_template_kwargs": 3}, "'chat_template_kwargs' is 3; write an object"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "says the opposite of enable_thinking"),
    ],
)
def test_keys_that_cannot_be_sent_are_refused(extra_body: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        build_extra_body(extra_body, enable_thinking=False)
    with pytest.raises(SettingsError, match=rf"http\.extra_body is .*{problem}"):
        parse_settings({"http": {"enable_thinking": False, "extra_body": extra_body}})


@pytest.mark.parametrize("text", ["{", "[1]", "3", ""])
def test_a_text_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_extra_body(text)
    with pytest.raises(SettingsError, match=r"http\.extra_body is "):
        load_settings(None, {"QUERYLIFT_HTTP__EXTRA_BODY": text})


def test_the_environment_gives_the_keys_as_json_and_the_switch_as_a_word() -> None:
    environment = {"QUERYLIFT_HTTP__EXTRA_BODY": '{"top_p": 0.8}', "QUERYLIFT_HTTP__ENABLE_THINKING": "false"}
    assert load_settings(None, environment).http.build_extra_body() == {"top_p": 0.8, **NO_THINKING}


async def _expand(server: TeacherServer, **http: Any) -> tuple[Expansion | None, str]:
    async with server:
        settings = parse_settings({"http": {"api_key": "k", **http}})
        generator = make_generator(server.url, settings)
        await generator.start()
        try:
            return await generator.expand(ExpansionRequest("rain")), generator.identity.replace(server.url, "URL")
        finally:
            await generator.close()


def test_the_generator_http_sends_the_keys_and_caches_their_expansions_apart() -> None:
    server = TeacherServer()
    _, plain_identity = asyncio.run(_expand(server))
    _, identity = asyncio.run(_expand(server, enable_thinking=False, extra_body={"top_p": 0.8}))
    plain_body, body = server.bodies
    assert body == {**plain_body, **NO_THINKING, "top_p": 0.8}
    assert (body["temperature"], body["max_tokens"]) == (0, 64)
    assert plain_identity == "http:URL:default:passage-2" != identity


@pytest.mark.parametrize(
    "content", ["<think>Let me see.\n\n</think>\n\nWet drops fall.", "hm\n</think>Wet drops fall."]
)
def test_a_thinking_block_is_taken_out_of_the_served_words(content: str) -> None:
    async def handle(request: Any) -> Any:
        return make_answer(content, reasoning_content="Let me see.")

    expansion, _ = asyncio.run(_expand(TeacherServer(handle)))
    assert expansion == Expansion(text="Wet drops fall")


def test_a_thinking_block_that_never_closes_is_a_failure_with_a_remedy() -> None:
    async def handle(request: Any) -> Any:
        return make_answer("<think>Let me see. The user")

    with pytest.raises(GeneratorError, match=r"holds only thinking; set enable_thinking = false in \[http\]"):
        asyncio.run(_expand(TeacherServer(handle)))
