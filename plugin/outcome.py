"""The outcome of one search, in the words that headers, metrics, logs and reports share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OutcomeKind = Literal["expanded", "cached", "skipped", "late", "error"]
OUTCOME_KINDS: tuple[OutcomeKind, ...] = ("expanded", "cached", "skipped", "late", "error")
OUTCOME_HEADER = "X-Querylift"
"""The response header that carries the outcome."""

BODY_REASONS = {
    "not-json": "the body is not one JSON object in UTF-8",
    "duplicate-key": "an object in the body has a key twice, and only the engine knows which value counts",
    "number": "a number in the body cannot be written again exactly",
    "too-deep": "the body is nested too deeply",
    "too-many-values": "the body has more values than Querylift reads in the time that a search may take",
    "no-text": "no clause scores the words of a user",
    "fields": "the clauses search only fields that the policy does not list",
    "several-texts": "the clauses hold different texts; if some are filters, list the text fields in `fields`",
    "too-many-clauses": "the query is searched in more clauses or fields than an expansion may be added to",
    "phrase": "the words must stand together as a phrase",
    "quoted": "the user put words in quotation marks",
    "wildcard": "the text has wildcards",
    "operators": "the text uses query syntax",
    "code": "the text looks like an id or a code",
    "long": "the text is longer than the policy's max_query_words",
    "size-0": "the search asks for no hits",
    "sort": "the hits are not sorted by score",
    "min-score": "scores are compared with a bound, or decide which hits are counted",
    "scroll": "a scroll cannot be widened",
    "uri-query": "the query is in the URL parameter q",
    "highlight": "highlighting would show words that the user did not type",
    "empty": "the expansion has nothing for the fields that the query searches",
}
"""Every reason that the body of a search can give, with its meaning as a sentence for a reader."""

REASONS = BODY_REASONS | {
    "off": "expansion is switched off, by the request or by the settings",
    "index": "no settings table allows expansion on every index searched",
    "pit": "the point in time was not opened through Querylift; set pit_index to the index whose table applies",
    "encoding": "the body has an encoding or a media type that Querylift does not read",
    "unseen": "the form of the answer would hide that a shard refused the expanded search",
    "template": "a template holds the search, and only the engine fills it in",
    "continuation": "the request reads on in an earlier search",
    "too-large": "the body is larger than max_body_bytes",
    "too-many-searches": "the _msearch holds more searches than Querylift reads",
    "no-newline": "the _msearch does not end with a newline, so the engine refuses it",
    "same-hits": "the search counts or groups its hits, so mode widen was served as boost",
    "required-words": "the search says which or how many words must match, so mode widen was served as boost",
    "control": "the user belongs to the control group of an experiment",
    "interleaved": "the answer holds the hits of the original and of the expanded search, in turns",
    "alone": "one of two searches to be interleaved gave no usable answer, so the other was served alone",
    "nothing": "the generator had nothing to add",
    "pinned": "this query was answered without an expansion a moment ago, and its pages must agree",
    "budget": "the expansion was not ready within the time budget",
    "warming": "an expansion takes longer than the time budget, so the search did not wait; it is made for later searches",
    "busy": "too many expansions are already being made",
    "explain": "profile or explain would show the client words of documents that it may not read",
    "pattern": "the generator reads with an account of its own, so it needs the name of one index",
    "generator": "the generator failed",
    "engine": "the engine did not answer",
    "rejected": "the engine refused the expanded search, so the original was sent",
    "original-fails": "the engine does not fully answer the original search either, so the expansion was not at fault",
    "paused": "the engine refused expanded searches on this index, so expansion pauses",
    "internal": "Querylift has a fault; the original search was sent",
}
"""Every reason, with its meaning as a sentence for a reader."""


class Skip(Exception):
    """The search goes to the engine unchanged. `reason` is a key of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Outcome:
    """`kind` says which search the engine got. `reason` says why, or what limited it: a key of REASONS, or empty."""

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
