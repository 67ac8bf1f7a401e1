"""Scales of relevance grades: what each grade means, and from which grade a document counts as relevant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from querylift.plugin.errors import SettingsError

MAX_SCALE_GRADE = 9
"""The highest grade that a scale may have."""


@dataclass(frozen=True, slots=True)
class GradeScale:
    """The grades 0, 1, ... of a scale. `meanings[grade]` says in one sentence what the grade means, or is empty."""

    name: str
    meanings: tuple[str, ...]
    relevant_from: int

    @property
    def highest(self) -> int:
        """The highest grade."""
        return len(self.meanings) - 1

    @property
    def grades(self) -> range:
        """All grades, lowest first."""
        return range(len(self.meanings))

    def count_grades(self, grades: Iterable[int]) -> dict[int, int]:
        """Return how often each grade of the scale occurs, lowest grade first."""
        counts = Counter(grades)
        return {grade: counts[grade] for grade in self.grades}

    def contains(self, grade: object) -> bool:
        """Return whether `grade` is a whole number on this scale. True and False are not."""
        return isinstance(grade, int) and not isinstance(grade, bool) and 0 <= grade <= self.highest


SCALES: Mapping[str, GradeScale] = {
    "graded": GradeScale(
        "graded",
        (
            "The document has nothing to do with the query.",
            "The document is about the topic of the query, but does not answer it.",
            "The document answers the query in part, or the answer is hidden among other things.",
            "The document is about the query and answers it fully.",
        ),
        relevant_from=2,
    ),
    "umbrela": GradeScale(
        "umbrela",
        (
            "The passage has nothing to do with the query.",
            "The passage seems related to the query but does not answer it.",
            "The passage has some answer for the query, but it is unclear or hidden among extraneous information.",
            "The passage is dedicated to the query and contains the exact answer.",
        ),
        relevant_from=2,
    ),
    "binary": GradeScale(
        "binary",
        ("The document does not help with the query.", "The document helps with the query."),
        relevant_from=1,
    ),
}
"""The scales that have a name. `umbrela` has the grades of UMBRELA (arXiv 2406.06519), which follow TREC Deep Learning."""
DEFAULT_SCALE = SCALES["graded"]


def parse_scale(text: str) -> GradeScale:
    """Return the scale with the name `text`, or the scale from 0 to `text` when it is a number, such as 4.

    A number's scale has no meanings between its ends. Its upper half counts as relevant. Raises SettingsError.
    """
    if text in SCALES:
        return SCALES[text]
    highest = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= highest <= MAX_SCALE_GRADE:
        raise SettingsError(
            f"--scale is {text!r}; name one of {', '.join(SCALES)}, or give the highest grade, 1 to {MAX_SCALE_GRADE}"
        )
    first, last = (
        SCALES["binary"].meanings if highest == 1 else (SCALES["graded"].meanings[0], SCALES["graded"].meanings[3])
    )
    return GradeScale(text, (first, *[""] * (highest - 1), last), relevant_from=(highest + 1) // 2)
