"""The prompt of a chat model that Querylift did not train, by the chat template that the model brings.

A trained student reads `querylift.plugin.expansion.build_prompt`. An untrained model knows only its own template, and a model
that thinks would spend all its tokens on a thought. So the template is rendered with thinking switched off.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from querylift.plugin.expansion import build_messages, build_prompt

NO_THINKING_OPTIONS = {"enable_thinking": False, "thinking": False}
"""The variables by which templates switch thinking off: Qwen3's name, and that of DeepSeek and Granite."""
_MARKER = "querylift0marker"
"""It stands for the user's message while a template is rendered. No template changes a word of letters and digits."""
_OPENING_TAG, _CLOSING_TAG = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class PromptFrame:
    """What a chat template writes before and after the user's message."""

    before: str
    after: str

    def write_prompt(self, query: str) -> str:
        """Return the prompt for `query`. Text in it that looks like a special token is removed."""
        return self.before + build_messages(query)[-1]["content"] + self.after


def choose_prompt_writer(template: str | None) -> Callable[[str], str]:
    """Return the function that writes the prompt of a model that brings `template` and that Querylift did not train.

    It is `build_prompt` for a model without a template, and for a template that cannot be rendered with a system message.
    """
    frame = render_prompt_frame(template) if template else None
    if frame is None or frame.write_prompt("query") == build_prompt("query"):
        return build_prompt
    return frame.write_prompt


def brings_other_prompt(template: str | None) -> bool:
    """Whether a model with this chat template reads another prompt than `build_prompt`, and so is no student."""
    return choose_prompt_writer(template) is not build_prompt


def render_prompt_frame(template: str) -> PromptFrame | None:
    """Return what a chat template writes around the user's message. None when it cannot be rendered, or drops the message.

    The template comes with a model, so it runs in Jinja's sandbox. It gets no begin token, because tokenizers add that.
    """
    from jinja2 import TemplateError

    *others, user_message = build_messages("query")
    try:
        prompt = _compile_template(template).render(
            messages=[*others, {**user_message, "content": _MARKER}],
            add_generation_prompt=True,
            bos_token="",
            eos_token="",
            **NO_THINKING_OPTIONS,
        )
    except (TemplateError, ValueError, TypeError, LookupError, ArithmeticError):
        return None
    before, marker, after = prompt.partition(_MARKER)
    if not marker or _MARKER in after:
        return None
    return PromptFrame(before, _close_thinking(after))


def _compile_template(template: str) -> Any:
    """Compile a chat template as transformers does: the same white space, loop controls, filter and functions."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _refuse_messages
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(template)


def _refuse_messages(message: str) -> None:
    """Stop rendering: the template takes no such messages."""
    raise ValueError(message)


def _close_thinking(after: str) -> str:
    """Close a thinking block that the template leaves open, as those of models do that always think."""
    is_open = after.rfind(_OPENING_TAG) > after.rfind(_CLOSING_TAG)
    return f"{after.rstrip()}\n\n{_CLOSING_TAG}\n\n" if is_open else after
