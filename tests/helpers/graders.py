"""A small judge that needs no model: it grades by the share of the query's words that the document holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE, GradeScale
from querylift.index_tools.judging.grader import PredictedGrade, QueryDocumentPair


@dataclass(frozen=True, slots=True)
class WordOverlapGrader:
    """Grades a document by the share of the query's words in it: all of them give the highest grade."""

    name: str = "word-overlap"
    teacher: str = "dictionary-1b"
    scale: GradeScale = DEFAULT_SCALE
    graded_pairs: list[QueryDocumentPair] = field(default_factory=list)

    def grade_pairs(
        self, pairs: Sequence[QueryDocumentPair], *, progress: Callable[[int], None] = lambda count: None
    ) -> list[PredictedGrade]:
        """Return the grades, each with probability .7. The other grades share what is left."""
        self.graded_pairs.extend(pairs)
        progress(len(pairs))
        return [self._predict(pair) for pair in pairs]

    def _predict(self, pair: QueryDocumentPair) -> PredictedGrade:
        words = set(pair.query.lower().split())
        share = len(words & set(pair.document.lower().split())) / len(words)
        grade = int(share * self.scale.highest)
        others = 0.3 / self.scale.highest
        return PredictedGrade(grade, tuple(0.7 if other == grade else others for other in self.scale.grades))


@dataclass(frozen=True, slots=True)
class OffScaleGrader(WordOverlapGrader):
    """Gives every document a grade above its scale, as a damaged model might."""

    def grade_pairs(
        self, pairs: Sequence[QueryDocumentPair], *, progress: Callable[[int], None] = lambda count: None
    ) -> list[PredictedGrade]:
        """Return one grade more than the highest for each pair."""
        return [PredictedGrade(self.scale.highest + 1, (0.0,) * (self.scale.highest + 2)) for _ in pairs]
