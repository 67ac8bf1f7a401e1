"""The interface between the proxy and whatever produces expansions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from querylift.plugin.expansion import Expansion


@dataclass(frozen=True, slots=True)
class ExpansionRequest:
    """A request to a generator for the expansion of one query.

    `text` is the query, with white space collapsed. `index` is the index expression of the search. `fields` are the
    fields that the search names, without boosts; empty when it names none. Some generators need index and fields,
    others need only the text. The repr leaves the text out, so that no query reaches a log line.
    """

    text: str
    index: str = ""
    fields: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ExpansionRequest(index={self.index!r}, fields={self.fields!r})"


class Generator(Protocol):
    """Produces expansions. One instance serves many concurrent `expand` calls on one event loop.

    A generator that takes longer than a moment also has `expected_s`, the seconds that an expansion probably takes.
    One with a queue or a worker process also has `meter`, a `GenerationMeter` to which it reports both.
    """

    @property
    def identity(self) -> str:
        """The generator's part of a cache key: its kind, model digest, prompt version and settings."""
        ...

    @property
    def reads_index(self) -> bool:
        """Whether the expansion depends on the request's index and fields. If so, both belong to the cache key."""
        ...

    @property
    def uses_account(self) -> bool:
        """Whether it reads indices with the account of the settings, which may read more than the client may."""
        ...

    async def start(self) -> None:
        """Load what the generator needs. Raises SettingsError or MissingExtra when it can never work."""
        ...

    async def expand(self, request: ExpansionRequest) -> Expansion | None:
        """Return the expansion for `request`, or None when there is nothing to add. Raises GeneratorError."""
        ...

    async def close(self) -> None:
        """Release processes and connections. It is safe to call this twice."""
        ...
