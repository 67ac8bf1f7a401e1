"""Read the text out of a chat completion, the answer of an OpenAI-compatible endpoint.

Endpoints differ: the content may be a string, null, or a list of parts. A model that thinks may write nothing else, in the
text or beside it. `read_chat_answer` is the one place that takes the thinking out of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from querylift.plugin.errors import GeneratorError
from querylift.plugin.expansion import clean_prose, remove_thinking
from querylift.plugin.refusals import is_refusal

_THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TEXT_TYPES = ("text", "output_text")


class AnswerRefused(GeneratorError):
    """The model, or a filter at the endpoint, refused to answer. The same query will be refused again."""


class OnlyThinking(GeneratorError):
    """The model spent all its tokens thinking, or has nothing beside its thinking."""


def read_chat_answer(answer: Any) -> str:
    """Return the text of a chat completion without its thinking. It is empty when the model had nothing to say.

    Raises AnswerRefused, OnlyThinking, and GeneratorError when the answer has another shape.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        content = message["content"]
    except (KeyError, IndexError, TypeError):
        raise GeneratorError("the endpoint's answer is not a chat completion") from None
    text = _join_text_parts(content)
    prose = clean_prose(text)
    if message.get("refusal") or choice.get("finish_reason") == "content_filter" or is_refusal(prose):
        raise AnswerRefused("the endpoint refused to answer")
    if not prose and _has_only_thinking(choice, message, text):
        raise OnlyThinking("the endpoint's answer holds only thinking")
    if not prose and not isinstance(content, str):
        raise GeneratorError(f"the endpoint's answer holds no text (its content is {_describe_content(content)})")
    return remove_thinking(text)


def has_answer_ended(answer: Any) -> bool:
    """Return False when the model of a completion stopped at its token limit, and True otherwise."""
    return bool(answer["choices"][0].get("finish_reason") != "length")


def _join_text_parts(content: Any) -> str:
    """Return a content as one text. Parts of other kinds, such as thinking, are left out."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    parts = [part if isinstance(part, str) else _read_text_part(part) for part in content]
    return "".join(parts)


def _read_text_part(part: Any) -> str:
    is_text = isinstance(part, Mapping) and part.get("type", "text") in _TEXT_TYPES
    return part["text"] if is_text and isinstance(part.get("text"), str) else ""


def _has_only_thinking(choice: Mapping[str, Any], message: Mapping[str, Any], text: str) -> bool:
    """Whether an answer without prose was cut off, thinks in its text, or has its thinking beside the text."""
    was_cut_off = choice.get("finish_reason") == "length"
    return was_cut_off or "<think" in text.lower() or any(message.get(key) for key in _THINKING_KEYS)


def _describe_content(content: Any) -> str:
    return "null" if content is None else f"a {type(content).__name__} of other parts"
