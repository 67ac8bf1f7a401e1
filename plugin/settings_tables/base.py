"""The common base of all tables in querylift.toml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SettingsTable(BaseModel):
    """A table of settings. It cannot be changed, and it refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
