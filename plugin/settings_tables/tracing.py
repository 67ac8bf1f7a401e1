"""The table `[tracing]` of querylift.toml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from querylift.plugin.engine.urls import split_http_url
from querylift.plugin.settings_tables.base import SettingsTable


class TracingSettings(SettingsTable):
    """`[tracing]`: where traces of searches go by OTLP over HTTP, and which share of them. Off without `endpoint`."""

    endpoint: str | None = None
    sample_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    service_name: Annotated[str, Field(min_length=1)] = "querylift"

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = split_http_url(value, example="http://collector:4318")
        if parts.username or parts.password:
            raise ValueError("put the key into the variable OTEL_EXPORTER_OTLP_HEADERS; a URL is shown in logs")
        return value.rstrip("/").removesuffix("/v1/traces")
