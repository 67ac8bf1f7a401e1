"""The reward of a teacher's answer about one pair of a query and a document: five dimensions, each from 0 to 1.

* label: 1 - |answer's grade - annotation's grade| / highest grade of the scale
* consistency: 1 - |mean of the answer's criteria / 3 - answer's grade / highest grade of the scale|
* grounding: the share of the reasoning's different content words that occur in the query or the document
* length: 1 when the reasoning has `min_words` to `max_words` words. Below it is words / `min_words`, above `max_words` / words
* format: 0 when the answer is no JSON object, else the share of its fields that are there and valid

A JSON object among other words counts as none here, although `querylift judge annotate` would read it.

The reward is the mean of the dimensions by their weights in `[reward]`. A dimension whose fields the answer lacks is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from querylift.index_tools.judging.grade_scale import GradeScale
from querylift.plugin.words import count_words
from querylift.trainer.judge.adaptation.adaptation_config import RewardOptions
from querylift.trainer.judge.adaptation.chat_rows import AnswerFields, read_answer_fields
from querylift.trainer.judge.annotations import CRITERIA, MAX_CRITERION_GRADE, Annotation
from querylift.trainer.judge.reasoning_template import list_content_stems

DIMENSIONS = ("label", "consistency", "grounding", "length", "format")
"""The dimensions of a reward, as the configuration names their weights."""


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer with its reward, and with the score of each dimension."""

    text: str
    reward: float
    scores: Mapping[str, float]


def score_answer(text: str, annotation: Annotation, scale: GradeScale, options: RewardOptions) -> ScoredAnswer:
    """Return the answer `text` with its reward for the pair of `annotation`."""
    fields = read_answer_fields(text, scale)
    scores = {
        "label": score_label(fields, annotation.grade, scale),
        "consistency": score_consistency(fields, scale),
        "grounding": score_grounding(fields.reasoning, annotation.query, annotation.document),
        "length": score_length(fields.reasoning, min_words=options.min_words, max_words=options.max_words),
        "format": score_format(fields),
    }
    return ScoredAnswer(text, weigh_scores(scores, options.weights), scores)


def weigh_scores(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the mean of the scores by their weights, from 0 to 1. At least one weight is above 0."""
    return sum(weight * scores[name] for name, weight in weights.items()) / sum(weights.values())


def score_label(fields: AnswerFields, grade: int, scale: GradeScale) -> float:
    """Return 1 for the grade of the annotation, and less for each step away from it. 0 without a grade."""
    return 0.0 if fields.grade is None else 1 - abs(fields.grade - grade) / scale.highest


def score_consistency(fields: AnswerFields, scale: GradeScale) -> float:
    """Return how near the mean of the criteria is to the answer's own grade, both as shares of the highest.

    0 when the grade or one of the criteria is missing.
    """
    if fields.grade is None or len(fields.criteria) < len(CRITERIA):
        return 0.0
    mean_share = sum(fields.criteria.values()) / (len(CRITERIA) * MAX_CRITERION_GRADE)
    return 1 - abs(mean_share - fields.grade / scale.highest)


def score_grounding(reasoning: str, query: str, document: str) -> float:
    """Return the share of the reasoning's content words that occur in the query or the document, compared by stem.

    0 when the reasoning has no content word.
    """
    stems = set(list_content_stems(reasoning))
    known_stems = {*list_content_stems(query), *list_content_stems(document)}
    return len(stems & known_stems) / len(stems) if stems else 0.0


def score_length(reasoning: str, *, min_words: int, max_words: int) -> float:
    """Return 1 when the reasoning has `min_words` to `max_words` words, and less the further it is outside."""
    words = count_words(reasoning)
    if words < min_words:
        return words / min_words
    return min(1.0, max_words / words)


def score_format(fields: AnswerFields) -> float:
    """Return the share of the reasoning, the four criteria and the grade that are there and valid."""
    valid = bool(fields.reasoning) + len(fields.criteria) + (fields.grade is not None)
    return valid / (len(CRITERIA) + 2)
