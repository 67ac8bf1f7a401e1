"""How a chat endpoint is asked: which model, how fast, and at what price."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from querylift.plugin.errors import SettingsError
from querylift.plugin.generators.chat_request import build_extra_body

API_KEY_VARIABLES = ("QUERYLIFT_TEACHER_API_KEY", "OPENAI_API_KEY")
_NO_API_KEY = "none"
"""The client requires a key. A local server ignores it."""
_TURN_TOKENS = 8
"""About as many tokens as a chat template adds to each message."""

Messages = Sequence[Mapping[str, str]]
"""Chat messages, each with "role" and "content"."""


@dataclass(frozen=True, slots=True)
class EndpointPlan:
    """Which model is asked, how fast, and at what price. Raises SettingsError when a value is out of range."""

    model: str
    base_url: str = field(repr=False)
    max_tokens: int = 128
    """The longest answer."""
    concurrency: int = 8
    requests_per_minute: float | None = None
    token_budget: int | None = None
    """Tokens that one run may use, in prompts and answers together."""
    price_in: float | None = None
    """Price of a million prompt tokens, in any currency."""
    price_out: float | None = None
    """Price of a million answer tokens."""
    max_retries: int = 6
    timeout_s: float = 300.0
    enable_thinking: bool | None = None
    """Whether a hybrid model thinks before it answers. None sends nothing, and leaves it to the model."""
    extra_body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Keys that every request gets beside Querylift's own."""

    positive_fields: ClassVar[tuple[str, ...]] = (
        "max_tokens",
        "concurrency",
        "timeout_s",
        "requests_per_minute",
        "token_budget",
    )

    def __post_init__(self) -> None:
        for name in self.positive_fields:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingsError(f"{name} is {value}; name a number above 0")
        if urlsplit(self.base_url).scheme not in ("http", "https"):
            raise SettingsError(f"the endpoint is {self.public_url!r}; name a URL such as http://127.0.0.1:8000/v1")
        try:
            self.build_extra_body()
        except ValueError as error:
            raise SettingsError(f"--extra-body: {error}") from None

    def build_extra_body(self) -> dict[str, Any]:
        """Return the keys that every request gets beside Querylift's own."""
        return build_extra_body(self.extra_body, enable_thinking=self.enable_thinking)

    @property
    def empty_answer_remedy(self) -> str:
        """Why the answers may be empty, and what to do about it, as the end of a sentence."""
        if self.enable_thinking is False:
            return (
                f"though it was asked not to think: raise --max-tokens above {self.max_tokens}, or name another --model"
            )
        return (
            "probably because it spends its tokens thinking: give --no-thinking, "
            f"or raise --max-tokens above {self.max_tokens}"
        )

    @property
    def public_url(self) -> str:
        """The endpoint's URL without account and parameters, for messages."""
        parts = urlsplit(self.base_url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    def compute_cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """Return the price of so many prompt and answer tokens, or None when no price is known."""
        if self.price_in is None and self.price_out is None:
            return None
        return ((self.price_in or 0) * tokens_in + (self.price_out or 0) * tokens_out) / 1_000_000

    def estimate_usage(self, conversations: Iterable[Messages]) -> UsageEstimate:
        """Estimate the tokens and the cost of one request for each conversation. Every answer counts at full length."""
        request_tokens = [estimate_tokens(messages) for messages in conversations]
        tokens_in, tokens_out = sum(request_tokens), len(request_tokens) * self.max_tokens
        return UsageEstimate(len(request_tokens), tokens_in, tokens_out, self.compute_cost(tokens_in, tokens_out))


@dataclass(frozen=True, slots=True)
class UsageEstimate:
    """What a run will use. `tokens_in` is an estimate; `tokens_out` and `cost` are upper bounds."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None


def choose_api_key(environment: Mapping[str, str]) -> str:
    """Return the first of `API_KEY_VARIABLES` that is set, or a placeholder, as a local server needs no key."""
    return next((environment[name] for name in API_KEY_VARIABLES if environment.get(name)), _NO_API_KEY)


def estimate_tokens(messages: Messages) -> int:
    """Estimate the tokens of chat messages: four ASCII characters a token, and one token for every other character."""
    texts = [message["content"] for message in messages]
    ascii_chars = sum(len(text.encode("ascii", "ignore")) for text in texts)
    return ascii_chars // 4 + sum(map(len, texts)) - ascii_chars + _TURN_TOKENS * len(texts)
