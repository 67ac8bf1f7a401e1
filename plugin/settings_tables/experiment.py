"""The keys of `[index.NAME]` that make an experiment: which users get expanded searches, and what is compared."""

from __future__ import annotations

import re

from pydantic import field_validator

from querylift.plugin.experiments import DEFAULT_USER_HEADER, Experiment
from querylift.plugin.settings_tables.base import SettingsTable

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
"""RFC 9110, section 5.6.2."""
_MAX_NAME_CHARS = 128


class ExperimentSettings(SettingsTable):
    """The share of users whose searches are expanded, what tells users apart, and whether lists are interleaved."""

    traffic: float = 1
    traffic_by: str = DEFAULT_USER_HEADER
    interleave: bool = False
    experiment: str = ""

    @field_validator("traffic")
    @classmethod
    def _check_share(cls, value: float) -> float:
        if not 0 < value <= 1:  # not a number is refused as well
            raise ValueError("use a share above 0 and up to 1, such as 0.5; enabled = false expands for nobody")
        return value

    @field_validator("traffic_by")
    @classmethod
    def _check_header_name(cls, value: str) -> str:
        if not _HEADER_NAME.match(value):
            raise ValueError("use the name of a request header that tells users apart, such as x-user-id")
        return value.lower()

    @field_validator("experiment")
    @classmethod
    def _check_experiment_name(cls, value: str) -> str:
        if len(value) > _MAX_NAME_CHARS or not value.isprintable() or value != value.strip():
            raise ValueError(f"use a name of at most {_MAX_NAME_CHARS} letters, without spaces around it")
        return value

    @property
    def has_experiment(self) -> bool:
        """Whether searches are compared: some users are a control group, or two lists are interleaved."""
        return self.traffic < 1 or self.interleave

    def make_experiment(self) -> Experiment | None:
        """Return the experiment that these settings describe, or None when nothing is compared."""
        if not self.has_experiment:
            return None
        return Experiment(self.experiment, self.traffic, self.traffic_by.encode(), interleaves=self.interleave)
