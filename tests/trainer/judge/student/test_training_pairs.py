"""Which pairs a judge learns from, their soft labels, and which queries are left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE, parse_scale
from querylift.plugin.errors import DataError, SettingsError
from querylift.trainer.judge.annotations import CRITERIA, Annotation
from querylift.trainer.judge.student.training_pairs import (
    check_grades,
    choose_balanced_pairs,
    compute_mean_sums,
    compute_soft_labels,
    leave_out_queries,
    read_excluded_queries,
)
from tests.helpers.corpus_files import write_text_file


def make_rows(*counts: int) -> list[Annotation]:
    """Return as many annotations of grade 0, 1, ... as `counts` says."""
    grades = [grade for grade, count in enumerate(counts) for _ in range(count)]
    return [Annotation("q", f"d{number}", "a", "b", grade, "m") for number, grade in enumerate(grades)]


def count_chosen(rows: list[Annotation], max_pairs: int) -> list[int]:
    chosen = choose_balanced_pairs(rows, max_pairs=max_pairs, seed=0)
    assert len({row.doc_id for row in chosen}) == len(chosen) == min(max_pairs, len(rows))
    counts = Counter(row.grade for row in chosen)
    return [counts[grade] for grade in range(4)]


@pytest.mark.parametrize(
    ("counts", "max_pairs", "chosen"),
    [
        ((100, 100, 100, 100), 40, [10, 10, 10, 10]),
        ((100, 100, 100, 4), 40, [12, 12, 12, 4]),
        ((100, 2, 100, 4), 40, [17, 2, 17, 4]),
        ((5, 2, 3, 4), 40, [5, 2, 3, 4]),
        ((100, 0, 100, 0), 7, [3, 0, 4, 0]),
    ],
)
def test_a_grade_that_is_short_of_pairs_leaves_its_share_to_the_others(
    counts: tuple[int, ...], max_pairs: int, chosen: list[int]
) -> None:
    assert count_chosen(make_rows(*counts), max_pairs) == chosen


def test_the_choice_is_in_a_random_order_that_the_seed_decides() -> None:
    rows = make_rows(20, 20, 20, 20)
    first, again, other = (choose_balanced_pairs(rows, max_pairs=40, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({row.grade for row in first[:10]}) > 1


@pytest.mark.parametrize(
    ("criteria", "grade", "labels"),
    [
        ((3, 3, 3, 3), 3, [0, 0, 0, 1]),
        ((0, 0, 0, 0), 0, [1, 0, 0, 0]),
        ((1, 1, 1, 1), 1, [0, 1, 0, 0]),
        (
            (2, 2, 1, 1),
            1,
            [0, 0.75, 0.25, 0],
        ),  # the sum 6 lies between 4 and 8: half of a half for grade 1, and for grade 2
        ((3, 3, 3, 2), 3, [0, 0, 0.125, 0.875]),  # 11
        ((0, 0, 0, 1), 3, [0.375, 0.125, 0, 0.5]),  # 1, far from the grade
    ],
)
def test_soft_labels_are_half_the_grade_and_half_what_the_criteria_say(
    criteria: tuple[int, ...], grade: int, labels: list[float]
) -> None:
    row = Annotation("q", "d", "a", "b", grade, "m", dict(zip(CRITERIA, criteria, strict=True)))
    assert compute_soft_labels(row, [0, 4, 8, 12]) == pytest.approx(labels)
    assert sum(labels) == 1


def test_soft_labels_without_all_criteria_are_the_grade_alone() -> None:
    row = Annotation("q", "d", "a", "b", 2, "m", {"exactness": 0, "topicality": 0})
    assert compute_soft_labels(row, [0, 4, 8, 12]) == [0, 0, 1, 0]


def test_soft_labels_follow_the_length_of_the_scale() -> None:
    row = Annotation("q", "d", "a", "b", 0, "m", dict.fromkeys(CRITERIA, 1))
    assert compute_soft_labels(row, [0, 12]) == pytest.approx([0.5 + 0.5 * 2 / 3, 0.5 / 3])


def make_row_with_sum(total: int, grade: int) -> Annotation:
    """Return an annotation whose criteria have the sum `total`."""
    values = [min(3, max(0, total - 3 * position)) for position in range(4)]
    return Annotation("q", "d", "a", "b", grade, "m", dict(zip(CRITERIA, values, strict=True)))


def test_the_sums_of_a_grade_are_those_of_its_annotations() -> None:
    rows = [make_row_with_sum(total, grade) for total, grade in [(0, 0), (3, 0), (7, 1), (8, 1), (9, 2), (12, 3)]]
    assert compute_mean_sums(rows, DEFAULT_SCALE) == [1.5, 7.5, 9, 12]
    assert compute_soft_labels(rows[4], [1.5, 7.5, 9, 12]) == [0, 0, 1, 0]


def test_a_grade_without_criteria_gets_a_sum_between_its_neighbours_and_no_sum_falls() -> None:
    assert compute_mean_sums([make_row_with_sum(2, 0), make_row_with_sum(8, 3)], DEFAULT_SCALE) == [2, 4, 6, 8]
    assert compute_mean_sums([make_row_with_sum(7, 0), make_row_with_sum(5, 3)], DEFAULT_SCALE) == [7, 7, 7, 7]
    assert compute_mean_sums(make_rows(1, 1), parse_scale("binary")) == [0, 12]


def test_no_annotation_and_one_grade_alone_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"a\.jsonl holds no annotation; write some with `querylift judge annot"):
        check_grades([], source="a.jsonl")
    with pytest.raises(SettingsError, match=r"all 3 annotations of a\.jsonl have grade 2; a judge learns from two"):
        check_grades(make_rows(0, 0, 3), source="a.jsonl")
    check_grades(make_rows(1, 0, 0, 1), source="a.jsonl")


@pytest.mark.parametrize(
    "text",
    [
        "q1 0 d1 2\nq2 0 d1 0\n",
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td1\t1\n",
        "q1\tbest songs 2019\nq2\twhat is an axon\n",  # its first line looks like a judgment
        "q1\twhat is rain\nq2\train\n",
        '{"_id": "q1", "text": "rain"}\n{"_id": "q2", "text": "snow"}\n',
        "<top><num>q1<title>rain</top>\n<top><num>q2<title>snow</top>\n",
        "q1 0 d1 2\nq1 0 d1 1\nq2 0 d1 1\n",  # two grades of one document are no fault here
    ],
)
def test_query_ids_come_from_judgments_and_from_every_format_of_queries(tmp_path: Path, text: str) -> None:
    assert read_excluded_queries(write_text_file(tmp_path / "queries", text)).keys() == {"q1", "q2"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("q1 0 d1 2\nq2 0 d1 relevant\n", r"/queries:2: grade 'relevant' is not a whole number"),
        ("q1\td1\t2\nq1\td2\n", r"/queries:2: 2 columns in a judgment; write 'query<TAB>document<TAB>grade'"),
        ("q1\train\nq1\tsnow\n", r"/queries:2: query id 'q1' comes twice"),
        ("rain\nsnow\n", r"/queries:1: this line has no query id before a tab"),
    ],
)
def test_a_faulty_line_is_named_in_the_words_of_its_format(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_excluded_queries(write_text_file(tmp_path / "queries", text))


def test_a_file_without_a_query_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"/queries holds no query; name a file of queries or of judgments"):
        read_excluded_queries(write_text_file(tmp_path / "queries", "\n"))
    with pytest.raises(SettingsError, match=r"missing' cannot be read: No such file"):
        read_excluded_queries(tmp_path / "missing")


def test_a_query_is_left_out_by_its_id_or_by_its_text() -> None:
    rows = [
        Annotation(query_id, "d1", query, "words", 1, "m")
        for query_id, query in (("q1", "one"), ("q2", "Two  words"), ("q3", "three"))
    ]
    assert [row.query_id for row in leave_out_queries(rows, {"q1": "", "other": "two words"})] == ["q3"]
    assert leave_out_queries(rows, {}) == rows
