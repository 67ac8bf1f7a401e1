"""`[aws]`: the engine is Amazon OpenSearch Service, and every request to it is signed."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from querylift.plugin.settings_tables.base import SettingsTable


class AwsSettings(SettingsTable):
    """`[aws]`: the region, the service and the profile that requests are signed for. Without a region none is signed."""

    region: str | None = None
    service: Literal["es", "aoss"] = "es"
    profile: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_region_is_given(cls, value: Any) -> Any:
        """Refuse a table that sets other keys only: nothing would be signed."""
        if isinstance(value, dict) and value and value.keys() <= {"service", "profile"}:
            raise ValueError("region is missing; set aws.region, such as eu-central-1")
        return value

    @field_validator("region")
    @classmethod
    def _check_region(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[a-z]+(-[a-z]+)+-\d+", value):
            raise ValueError("name a region of AWS, such as eu-central-1")
        return value

    @model_validator(mode="after")
    def _check_region_is_set(self) -> Self:
        if self.region is None and (self.service != "es" or self.profile is not None):
            raise ValueError("region is missing; set aws.region, such as eu-central-1")
        return self
