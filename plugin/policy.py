"""What one index allows: how its searches are rewritten, and for which users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from querylift.plugin.expansion import MAX_DOCUMENTS
from querylift.plugin.experiments import Experiment

Mode = Literal["boost", "widen"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How the searches on one index may be expanded.

    `mode` "boost" keeps the hits and changes their order; "widen" adds documents that match only the expansion.
    `weight` multiplies the score of each expansion word. `fields` are the text fields that may be expanded, without
    boosts; empty allows every field. `max_clauses` limits expansion words times fields. `max_query_words` is the
    length of the longest query that is expanded. At most `documents` documents of an expansion are added, and
    `document_weight` multiplies the score of each. Beside documents, terms have three quarters of `weight`.
    `experiment` decides which users get expanded searches. None stands for all users.
    """

    mode: Mode = "boost"
    weight: float = 0.2
    fields: tuple[str, ...] = ()
    max_clauses: int = 512
    max_query_words: int = 256
    documents: int = 200
    document_weight: float = 0.45
    experiment: Experiment | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("boost", "widen"):
            raise ValueError(f"mode is {self.mode!r}; use 'boost' or 'widen'")
        if not 0 < self.weight <= 10:
            raise ValueError(f"weight is {self.weight}; use a number above 0 and at most 10")
        if not 0 < self.document_weight <= 10:
            raise ValueError(f"document_weight is {self.document_weight}; use a number above 0 and at most 10")
        if not 0 <= self.documents <= MAX_DOCUMENTS:
            raise ValueError(f"documents is {self.documents}; use a number from 0 to {MAX_DOCUMENTS}")
        if self.max_clauses < 1 or self.max_query_words < 1:
            raise ValueError(
                f"max_clauses is {self.max_clauses} and max_query_words is {self.max_query_words}; use at least 1 for each"
            )
