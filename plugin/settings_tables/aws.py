"""`[aws]`: the engine is Amazon OpenSearch Service, and every request to it is signed."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import field_validator, model_validator

from querylift.plugin.settings_tables.base import SettingsTable


class AwsSettings(SettingsTable):
    """`[aws]`: the region, the service and the profile that requests are signed for. Without a region none is signed."""

    region: str | None = None
    service: Literal["es", "aoss"] = "es"
    profile: str | None = None

    @field_validator("region")
    @classmethod
    def _check_region(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[a-z]+(-[a-z]+)+-\d+", value):
            raise ValueError("name a region of AWS, such as eu-central-1")
        return value

    @model_validator(mode="after")
    def _check_region_is_set(self) -> Self:
        """Refuse a table that sets other keys only: nothing would be signed."""
        is_left_out = bool(self.model_fields_set) and "region" not in self.model_fields_set
        if self.region is None and (is_left_out or self.service != "es" or self.profile is not None):
            raise ValueError("region is missing; set aws.region, such as eu-central-1")
        return self
