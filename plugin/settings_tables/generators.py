"""The tables of the generators and of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from querylift.plugin.engine.urls import split_http_url
from querylift.plugin.generators.chat_request import build_extra_body, parse_extra_body
from querylift.plugin.settings_tables.base import SettingsTable

MAX_CACHE_S = 315_360_000
"""Ten years. A Redis refuses times that are much longer."""


class CacheSettings(SettingsTable):
    """`[cache]`: where expansions are cached, for how long, and how long a query stays pinned."""

    size: Annotated[int, Field(ge=1)] = 100_000
    ttl_s: Annotated[float, Field(gt=0, le=MAX_CACHE_S)] = 86_400
    pin_s: Annotated[float, Field(ge=0, le=MAX_CACHE_S)] = 120
    url: SecretStr | None = None
    file: Path | None = None


class LlamaSettings(SettingsTable):
    """`[llama]`: the worker process that runs a GGUF file, with or without an adapter."""

    adapter: Path | None = None
    threads: Annotated[int, Field(ge=1)] = 1
    slots: Annotated[int, Field(ge=1, le=64)] = 8
    queue_size: Annotated[int, Field(ge=1)] = 64
    max_seconds: Annotated[float, Field(gt=0)] = 60
    socket: Path | None = None


class ExpanderSettings(SettingsTable):
    """`[expander]`: how the fast expander runs that `querylift expander build` made."""

    threads: Annotated[int, Field(ge=1, le=64)] = 1
    queue_size: Annotated[int, Field(ge=1)] = 64


class EncoderEndpointSettings(SettingsTable):
    """`[encoder]`: the endpoint of an expander's encoder. Serving reads `url`, `api_key` and `max_seconds` only."""

    url: str | None = None
    model: str = ""
    api_key: SecretStr | None = None
    query_prefix: str = ""
    document_prefix: str = ""
    query_input_type: str = ""
    document_input_type: str = ""
    max_chars: Annotated[int, Field(ge=1)] = 2000
    batch_size: Annotated[int, Field(ge=1, le=2048)] = 32
    max_seconds: Annotated[float, Field(gt=0)] = 30

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        return value if value is None else check_endpoint_url(value, key="encoder.api_key")


class FeedbackSettings(SettingsTable):
    """`[feedback]`: RM3 on the documents that the engine returns first."""

    documents: Annotated[int, Field(ge=1, le=100)] = 10
    terms: Annotated[int, Field(ge=1, le=128)] = 20
    field: str | None = None


class HttpSettings(SettingsTable):
    """`[http]`: an OpenAI-compatible endpoint. `enable_thinking` None leaves it to the model whether it thinks."""

    model: str = "default"
    api_key: SecretStr | None = None
    max_seconds: Annotated[float, Field(gt=0)] = 10
    enable_thinking: bool | None = None
    extra_body: dict[str, Any] = Field(default_factory=dict)

    @field_validator("extra_body", mode="before")
    @classmethod
    def _parse_environment_text(cls, value: Any) -> Any:
        """Read the JSON text of an environment variable."""
        return parse_extra_body(value) if isinstance(value, str) else value

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        build_extra_body(value, enable_thinking=info.data.get("enable_thinking"))
        return value

    def build_extra_body(self) -> dict[str, Any]:
        """Return the keys that every request gets beside Querylift's own."""
        return build_extra_body(self.extra_body, enable_thinking=self.enable_thinking)


def check_endpoint_url(value: str, *, key: str) -> str:
    """Return the URL of an endpoint without a slash at its end. Raises ValueError. `key` names the setting of its key."""
    parts = split_http_url(value, example="http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ValueError(f"put the key into {key}; a URL is shown in logs")
    return value.rstrip("/")
