"""What everything that uses a judge asks of it: a grade for each pair of a query and a document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from querylift.index_tools.judging.grade_scale import GradeScale


class QueryDocumentPair(NamedTuple):
    """The text of a query and of a document."""

    query: str
    document: str


class PredictedGrade(NamedTuple):
    """A judge's grade of one pair. `probabilities` has one number for each grade of the scale; their sum is 1."""

    grade: int
    probabilities: tuple[float, ...]

    @property
    def probability(self) -> float:
        """The probability of the grade itself, from 0 to 1."""
        return self.probabilities[self.grade]


class Grader(Protocol):
    """A judge that is ready to grade."""

    @property
    def name(self) -> str:
        """The name that tables and reports show, such as `judge-minilm`."""
        ...

    @property
    def teacher(self) -> str:
        """The name of the model whose annotations the judge learned from."""
        ...

    @property
    def scale(self) -> GradeScale:
        """The scale of its grades."""
        ...

    def grade_pairs(
        self, pairs: Sequence[QueryDocumentPair], *, progress: Callable[[int], None] = lambda count: None
    ) -> list[PredictedGrade]:
        """Return the grade of each pair, in their order. `progress` is called with the number of pairs graded so far."""
        ...
