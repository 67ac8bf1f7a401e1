"""The outcome of one search, in the words that headers, metrics, logs and reports share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from querylift.plugin.dsl.skip import REASONS as DSL_REASONS

OutcomeKind = Literal["expanded", "cached", "skipped", "late", "error"]
OUTCOME_KINDS: tuple[OutcomeKind, ...] = ("expanded", "cached", "skipped", "late", "error")
OUTCOME_HEADER = "X-Querylift"
"""The response header that carries the outcome."""

REASONS = DSL_REASONS | {
    "off": "expansion is switched off, by the request or by the settings",
    "index": "no settings table allows expansion on every index searched",
    "pit": "a point-in-time search names no index; set pit_index to the index whose table applies",
    "encoding": "the body has an encoding or a media type that Querylift does not read",
    "too-large": "the body is larger than max_body_bytes",
    "too-many-searches": "the _msearch holds more searches than Querylift reads",
    "nothing": "the generator had nothing to add",
    "pinned": "this query was answered without an expansion a moment ago, and its pages must agree",
    "budget": "the expansion was not ready within the time budget",
    "warming": "an expansion takes longer than the time budget, so the search did not wait; it is made for later searches",
    "busy": "too many expansions are already being made",
    "generator": "the generator failed",
    "rejected": "the engine refused the expanded search, so the original was sent",
    "paused": "the engine refused expanded searches on this index, so expansion pauses",
    "internal": "Querylift has a fault; the original search was sent",
}
"""Every reason, with its meaning as a sentence for a reader."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`kind` says which search the engine got. `reason` says why: a key of REASONS, or empty."""

    kind: OutcomeKind
    reason: str = ""

    def __post_init__(self) -> None:
        if self.reason and self.reason not in REASONS:
            raise ValueError(f"{self.reason!r} is not a reason; add it to outcome.REASONS")

    @property
    def is_expanded(self) -> bool:
        """Whether the engine got an expanded search."""
        return self.kind in ("expanded", "cached")

    def format_header(self) -> str:
        """Return the value of the response header X-Querylift: `expanded`, or `skipped;index`."""
        return f"{self.kind};{self.reason}" if self.reason else self.kind

    def format_sentence(self) -> str:
        """Return the outcome as a sentence for a person."""
        return f"{self.kind}: {REASONS[self.reason]}" if self.reason else self.kind
