"""The stages of `querylift train expander`, by the names that its users, manifests and saved files give them."""

from __future__ import annotations

from typing import Literal

StageName = Literal["index", "judged", "preferences"]
STAGE_NAMES: tuple[StageName, ...] = ("index", "judged", "preferences")
"""In the order in which they run."""
