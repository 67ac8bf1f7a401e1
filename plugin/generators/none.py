"""No expansion: the proxy in place, every search as it came."""

from __future__ import annotations

from querylift.plugin.expansion import Expansion
from querylift.plugin.generators.base import Ask


class NoneGenerator:
    """Never has anything to add."""

    identity = "none"
    reads_index = False

    async def start(self) -> None:
        """Nothing to load."""

    async def expand(self, ask: Ask) -> Expansion | None:
        """None, always."""
        return None

    async def close(self) -> None:
        """Nothing to release."""
