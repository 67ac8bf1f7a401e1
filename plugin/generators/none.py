"""The generator `none`. The proxy runs, and every search stays unchanged."""

from __future__ import annotations

from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import ExpansionRequest


class NoneGenerator:
    """Never adds anything."""

    identity = "none"
    reads_index = False
    uses_account = False

    async def start(self) -> None:
        """Do nothing: there is nothing to load."""

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Return None for every request."""
        return None

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""
