"""A run whose answers are mostly empty is stopped, because it would pay for nothing and still end well."""

from __future__ import annotations

MIN_ANSWERS = 20
"""The run is not judged before it has so many answers."""
MAX_EMPTY_SHARE = 0.5
"""The run stops when a larger share of its answers is empty."""


class EmptyAnswerMeter:
    """Counts the answers of a run and those without words.

    `answered_before` is the number of requests that earlier runs of the same command got words for. They count too, so that a
    few queries which never get words do not stop a run that was nearly complete.
    """

    def __init__(self, *, answered_before: int = 0) -> None:
        self.answer_count = answered_before
        self.empty_count = 0

    def count_answer(self, *, is_empty: bool) -> None:
        """Count one answer."""
        self.answer_count += 1
        self.empty_count += is_empty

    @property
    def has_too_many(self) -> bool:
        """Whether more than `MAX_EMPTY_SHARE` of at least `MIN_ANSWERS` answers are empty."""
        return self.answer_count >= MIN_ANSWERS and self.empty_count > MAX_EMPTY_SHARE * self.answer_count
