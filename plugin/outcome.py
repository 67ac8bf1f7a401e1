"""What became of one search, in the words that headers, metrics, logs and reports share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from querylift.plugin.dsl.skip import REASONS as DSL_REASONS

Kind = Literal["expanded", "cached", "skipped", "late", "error"]
KINDS: tuple[Kind, ...] = ("expanded", "cached", "skipped", "late", "error")
HEADER = "X-Querylift"

REASONS = DSL_REASONS | {
    "off": "expansion is switched off, by the request or by the settings",
    "index": "no settings table allows expansion on every index searched",
    "pit": "a point-in-time search names no index; pit_index in the settings says which one's table to use",
    "encoding": "the body has an encoding or a media type that is not read",
    "too-large": "the body is larger than max_body_bytes",
    "too-many-searches": "the _msearch holds more searches than are looked into",
    "nothing": "the generator had nothing to add",
    "pinned": "this query was answered without expansion a moment ago, and its pages must agree",
    "budget": "the expansion was not there within the time budget",
    "busy": "too many expansions are being made",
    "generator": "the generator failed",
    "rejected": "the engine refused the expanded search, so the original was sent",
    "paused": "the engine refused expanded searches on this index, so expansion pauses",
    "internal": "a fault in Querylift; the original was sent",
}
"""Every reason and what it means to a reader."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`kind` says what the engine was sent, `reason` (a key of REASONS, may be empty) why."""

    kind: Kind
    reason: str = ""

    def __post_init__(self) -> None:
        if self.reason and self.reason not in REASONS:
            raise ValueError(f"{self.reason!r} is no reason; add it to outcome.REASONS")

    @property
    def applied(self) -> bool:
        """Whether the engine was sent an expanded search."""
        return self.kind in ("expanded", "cached")

    def header(self) -> str:
        """The value of the response header X-Querylift."""
        return f"{self.kind};{self.reason}" if self.reason else self.kind

    def sentence(self) -> str:
        """For a person."""
        return f"{self.kind}: {REASONS[self.reason]}" if self.reason else self.kind
