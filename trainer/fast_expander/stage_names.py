"""The stages of `querylift train expander`, by the names that its users, manifests and saved files give them."""

from __future__ import annotations

from typing import Literal

StageName = Literal["index", "judged", "feedback"]
STAGE_NAMES: tuple[StageName, ...] = ("index", "judged", "feedback")
"""In the order in which they run. The stage `feedback` learns from preferences: see `preferences_stage`."""
