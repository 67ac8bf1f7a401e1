"""Several annotations of one pair become one."""

import pytest

from querylift.trainer.judge.annotations import Annotation, MergedAnnotations, merge_duplicates


def _annotate(grade: int, reasoning: str = "", *, doc_id: str = "d", model: str = "m") -> Annotation:
    return Annotation("q", doc_id, "query", "document", grade, model, reasoning=reasoning)


def test_the_grade_of_most_rows_wins_with_the_reasoning_of_its_first_row() -> None:
    rows = [_annotate(3, "a"), _annotate(1, "b", model="n"), _annotate(1, "c")]
    assert merge_duplicates(rows) == MergedAnnotations([_annotate(1, "b", model="n")], 1)


@pytest.mark.parametrize(("grades", "chosen"), [((2, 1), 1), ((0, 3, 3, 0), 0), ((3, 2, 1), 1)])
def test_the_lower_grade_wins_a_tie(grades: tuple[int, ...], chosen: int) -> None:
    merged = merge_duplicates([_annotate(grade) for grade in grades])
    assert ([row.grade for row in merged.annotations], merged.conflict_count) == ([chosen], 1)


def test_rows_that_agree_are_no_conflict_and_the_order_of_pairs_stays() -> None:
    rows = [_annotate(2, "a", doc_id="z"), _annotate(0, doc_id="b"), _annotate(2, "c", doc_id="z")]
    assert merge_duplicates(rows) == MergedAnnotations(rows[:2], 0)
    assert merge_duplicates([]) == MergedAnnotations([], 0)
