"""What a request to a chat endpoint may hold beside Querylift's own keys: the switch for thinking, and the server's keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

OWN_KEYS = ("model", "messages", "prompt", "max_tokens", "temperature", "seed", "stop", "stream", "n")
"""The keys of a request that Querylift writes itself."""
_TEMPLATE_KEY, _THINKING_KEY = "chat_template_kwargs", "enable_thinking"
"""vLLM, SGLang and llama-server pass the first one's value on to the chat template. Qwen3's template reads the second."""


def build_extra_body(extra_body: Mapping[str, Any], *, enable_thinking: bool | None) -> dict[str, Any]:
    """Return the keys to add to a request. `enable_thinking` None leaves it to the model whether it thinks.

    Raises ValueError when a key is Querylift's own, or when a value is not JSON.
    """
    for name in OWN_KEYS:
        if name in extra_body:
            raise ValueError(f"{name!r} is a key that Querylift sets itself; leave it out")
    try:
        json.dumps(extra_body, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a value is not JSON ({error}); write text, numbers, lists and objects") from None
    if enable_thinking is None:
        return dict(extra_body)
    template_options = extra_body.get(_TEMPLATE_KEY, {})
    if not isinstance(template_options, Mapping):
        raise ValueError(f"{_TEMPLATE_KEY!r} is {template_options!r}; write an object")
    if template_options.get(_THINKING_KEY, enable_thinking) != enable_thinking:
        raise ValueError(f"{_TEMPLATE_KEY!r} says the opposite of {_THINKING_KEY}; leave one of the two out")
    return {**extra_body, _TEMPLATE_KEY: {**template_options, _THINKING_KEY: enable_thinking}}


def parse_extra_body(text: str) -> dict[str, Any]:
    """Return the object of a JSON text. Raises ValueError."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error}); write an object such as " + '{"top_k": 20}') from None
    if not isinstance(value, dict):
        raise ValueError('it is no JSON object; write one such as {"top_k": 20}')
    return value
