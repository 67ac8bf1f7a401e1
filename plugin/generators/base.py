"""The seam between the served path and whatever writes expansions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from querylift.plugin.expansion import Expansion


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for an expansion.

    `text` is the user's words, whitespace collapsed. `index` is the index expression of the search and `fields` the
    fields that it searches without boosts (empty where the request names none): engine feedback needs them, a
    language model does not. The text is left out of the repr, so that it cannot reach a log line.
    """

    text: str
    index: str = ""
    fields: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Ask(index={self.index!r}, fields={self.fields!r})"


class Generator(Protocol):
    """Writes expansions. One instance serves many concurrent `expand` calls on one event loop."""

    @property
    def identity(self) -> str:
        """What makes two generators interchangeable in a cache: kind, model hash, prompt version, settings."""
        ...

    @property
    def reads_index(self) -> bool:
        """Whether the answer depends on `Ask.index` and `Ask.fields`, and so belongs into the cache key."""
        ...

    async def start(self) -> None:
        """Load what is needed. Raises SettingsError or MissingExtra where it cannot work at all."""
        ...

    async def expand(self, ask: Ask) -> Expansion | None:
        """The expansion for `ask`, or None where there is nothing to add. Raises GeneratorError."""
        ...

    async def close(self) -> None:
        """Release processes and connections. Safe to call twice."""
        ...
