"""Annotations for small teachers: eight pairs of a query and a document, with whole answers."""

from __future__ import annotations

from pathlib import Path

from querylift.trainer.judge.annotations import Annotation
from tests.helpers.lessons import TOPICS, write_json_lines


def make_annotation(topic: str = "rain", grade: int = 3, *, reasoning: str | None = None) -> Annotation:
    """Return an annotation of one topic. Its criteria are the grade itself, so that they agree with it."""
    return Annotation(
        query_id=topic,
        doc_id=f"d-{topic}",
        query=f"what is {topic}",
        document=f"Weather stations on the ground measure {topic} with instruments.",
        grade=grade,
        model="teacher-large",
        criteria=dict.fromkeys(("exactness", "topicality", "coverage", "contextual_fit"), grade),
        reasoning=f"The document says that stations measure {topic}." if reasoning is None else reasoning,
    )


def make_annotations() -> list[Annotation]:
    """Return eight annotations, two of each grade."""
    return [make_annotation(topic, number % 4) for number, topic in enumerate(TOPICS[:8])]


def write_annotation_file(path: Path, annotations: list[Annotation] | None = None) -> Path:
    """Write annotations, by default eight, as `querylift judge annotate` does."""
    return write_json_lines(path, [row.to_json() for row in annotations or make_annotations()])
