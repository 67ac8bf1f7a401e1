"""What an index's owner allows: the part of the settings that the rewrite reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["boost", "widen"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How a search on one index may be expanded.

    `mode` boost keeps the hits and changes their order; widen also finds documents that match the expansion alone.
    `weight` multiplies the score of the expansion, per word. `fields` are the text fields that may be expanded, without
    boosts; empty allows every field. `max_clauses` bounds expansion words x fields. `max_query_words` is the longest
    user text that is expanded.
    """

    mode: Mode = "boost"
    weight: float = 0.2
    fields: tuple[str, ...] = ()
    max_clauses: int = 512
    max_query_words: int = 64

    def __post_init__(self) -> None:
        if self.mode not in ("boost", "widen"):
            raise ValueError(f"mode is {self.mode!r}; use 'boost' or 'widen'")
        if not 0 < self.weight <= 10:
            raise ValueError(f"weight is {self.weight}; use a number above 0 and at most 10")
        if self.max_clauses < 1 or self.max_query_words < 1:
            raise ValueError("max_clauses and max_query_words are at least 1")
