"""The plan of a teaching run: what a teacher is asked, how fast, and at what price."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from querylift.plugin.errors import SettingsError

TEACHER_PROMPT_VERSION = "teacher-1"
"""Part of every request's key. Change it with the wording in `querylift.trainer.teaching.prompts`."""
ZERO_SHOT, FEW_SHOT = "zero-shot", "few-shot"
PROMPT_METHODS = (ZERO_SHOT, FEW_SHOT)

_POSITIVE_FIELDS = (
    "samples",
    "max_tokens",
    "shots",
    "concurrency",
    "timeout_s",
    "requests_per_minute",
    "token_budget",
)


@dataclass(frozen=True, slots=True)
class TeachingPlan:
    """What a teacher is asked, and how fast.

    The fields up to `seed` decide which candidates come out. The others decide only the speed, the number and the price.
    Raises SettingsError when a value is out of range.
    """

    model: str
    base_url: str = field(repr=False)
    prompts: tuple[str, ...] = (ZERO_SHOT,)
    samples: int = 1
    """Answers to each prompt at each temperature. At temperature 0 there is only one."""
    temperatures: tuple[float, ...] = (0.7,)
    max_tokens: int = 128
    shots: int = 4
    """Examples in a few-shot prompt."""
    seed: int = 0
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

    def __post_init__(self) -> None:
        if not self.prompts or set(self.prompts) - set(PROMPT_METHODS):
            names = ", ".join(self.prompts) or "none"
            raise SettingsError(f"prompts are {names}; choose among {', '.join(PROMPT_METHODS)}")
        if not self.temperatures or not all(0 <= temperature <= 2 for temperature in self.temperatures):
            raise SettingsError(f"temperatures are {list(self.temperatures)}; name at least one, from 0 to 2")
        for name in _POSITIVE_FIELDS:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingsError(f"{name} is {value}; name a number above 0")
        if urlsplit(self.base_url).scheme not in ("http", "https"):
            raise SettingsError(f"the endpoint is {self.public_url!r}; name a URL such as http://127.0.0.1:8000/v1")

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

    def to_manifest(self) -> dict[str, Any]:
        """Return the settings that decide which candidates come out."""
        names = ("model", "prompts", "samples", "temperatures", "max_tokens", "shots")
        return {name: getattr(self, name) for name in names} | {"prompt_version": TEACHER_PROMPT_VERSION}
