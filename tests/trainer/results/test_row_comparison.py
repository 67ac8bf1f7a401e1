"""The shares and the tests of a row are those computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from querylift.trainer.results.collection_notes import list_collection_notes
from querylift.trainer.results.records import RowResult, SeedResult
from querylift.trainer.results.row_comparison import compare_rows, correct_over_collections
from tests.helpers.results import PLAIN, TAUGHT, create_rows, create_seed_results


def compare_with_teacher(teacher: str | None = "teacher", **measured: Sequence[SeedResult]) -> dict[str, RowResult]:
    names = {"plain": create_seed_results(PLAIN), "teacher": create_seed_results(TAUGHT), **measured}
    return compare_rows(create_rows(*names), names, teacher=teacher)


def test_a_share_is_that_of_the_teachers_mean_and_of_what_it_gains() -> None:
    # Means: plain 1.2 / 4 = 0.30, teacher 2.2 / 4 = 0.55, student 1.7 / 4 = 0.425.
    student = compare_with_teacher(student=create_seed_results({"q1": 0.5, "q2": 0.5, "q3": 0.6, "q4": 0.1}))["student"]
    assert student.ndcg_at_10 == pytest.approx(0.425)
    assert student.share_kept == pytest.approx(0.425 / 0.55)
    assert student.gain_kept == pytest.approx(0.125 / 0.25)


def test_the_teacher_keeps_all_and_the_plain_search_no_gain() -> None:
    row_results = compare_with_teacher()
    assert (row_results["teacher"].share_kept, row_results["teacher"].gain_kept) == (1, 1)
    assert row_results["plain"].share_kept == pytest.approx(0.30 / 0.55)
    assert row_results["plain"].gain_kept == 0


def test_seeds_are_averaged_by_query_before_anything_is_compared() -> None:
    student = compare_with_teacher(
        student=create_seed_results({**PLAIN, "q1": 0.6}, {**PLAIN, "q1": 0.2}, {**PLAIN, "q1": 0.1})
    )["student"]
    # Seeds: (1.2 + 0.4) / 4, 1.2 / 4, (1.2 - 0.1) / 4; q1 is 0.3 on average, one query wins by 0.1.
    assert student.ndcg_by_seed == pytest.approx((0.4, 0.3, 0.275))
    assert student.per_query == pytest.approx({**PLAIN, "q1": 0.3})
    mean = 0.975 / 3
    assert student.deviation == pytest.approx(
        math.sqrt(((0.4 - mean) ** 2 + (0.3 - mean) ** 2 + (0.275 - mean) ** 2) / 2)
    )
    compared = student.against_plain
    assert compared is not None
    assert (compared.wins, compared.ties, compared.losses) == (1, 3, 0)
    assert compared.p_value == 1, "a single difference lies as far from zero with either sign"


def test_the_p_value_counts_the_sign_patterns_that_lie_as_far_from_zero() -> None:
    # Differences of the teacher .4 .4 .1 .1, sum 1: of 16 patterns only ++++ and ---- reach it.
    against_plain = compare_with_teacher()["teacher"].against_plain
    assert against_plain is not None
    assert against_plain.difference == pytest.approx(0.25)
    assert against_plain.p_value == 2 / 16
    assert 0.09 < against_plain.interval[0] < 0.25 < against_plain.interval[1] < 0.41


def test_a_gain_of_one_lucky_seed_has_a_large_p_value() -> None:
    plain = {f"q{number}": 0.3 for number in range(20)}
    same, lucky = dict(plain), {query_id: 0.6 for query_id in plain}
    rows = {"plain": create_seed_results(plain), "student": create_seed_results(same, same, lucky)}
    compared = compare_rows(create_rows(*rows), rows, teacher=None)["student"].against_plain
    assert compared is not None
    assert (compared.wins, compared.losses) == (20, 0)
    assert compared.p_value == pytest.approx(0.4226, abs=1e-4), "t = 1 with two degrees of freedom"


def test_a_row_is_corrected_for_the_number_of_its_collections() -> None:
    six_gains = {f"q{number}": 0.5 for number in range(6)}
    plain = {query_id: 0.3 for query_id in six_gains}
    rows = {"plain": create_seed_results(plain), "student": create_seed_results(six_gains)}
    results = compare_rows(create_rows(*rows), rows, teacher=None)
    alone = correct_over_collections({"dl19": results})["dl19"]["student"].against_plain
    assert alone is not None
    assert (alone.verdict, alone.deciding_p_value) == ("helps", 2 / 64)
    without = {"plain": create_seed_results(plain)}
    corrected = correct_over_collections(
        {"dl19": results, "scifact": results, "empty": compare_rows(create_rows(*rows), without, teacher=None)}
    )
    for collection in ("dl19", "scifact"):
        for compared in (
            corrected[collection]["student"].against_plain,
            corrected[collection]["student"].against_above,
        ):
            assert compared is not None
            assert (compared.p_value, compared.deciding_p_value) == (2 / 64, 4 / 64)
            assert compared.verdict == "no measurable difference"
    assert list(corrected["empty"]) == ["plain"]


def test_the_row_above_is_the_nearest_that_has_the_collection() -> None:
    measured = {"plain": create_seed_results(PLAIN), "base": (), "student": create_seed_results(TAUGHT)}
    student = compare_rows(create_rows("plain", "base", "student"), measured, teacher=None)["student"]
    assert student.above == "plain"
    assert student.against_above == student.against_plain
    assert (student.share_kept, student.gain_kept) == (None, None)


def test_a_row_may_be_set_against_another_than_the_one_above() -> None:
    measured = {
        "plain": create_seed_results(PLAIN),
        "base": create_seed_results(TAUGHT),
        "sft": create_seed_results(PLAIN),
        "dpo": create_seed_results(TAUGHT),
    }
    dpo = compare_rows(create_rows("plain", "base", "sft", "dpo", dpo="base"), measured, teacher=None)["dpo"]
    assert dpo.above == "base"
    assert dpo.against_above is not None
    assert dpo.against_above.ties == 4
    absent = compare_rows(
        create_rows("plain", "base", "sft", "dpo", dpo="base"), {**measured, "base": ()}, teacher=None
    )["dpo"]
    assert (absent.above, absent.against_above) == ("base", None)


def test_a_teacher_that_gains_nothing_has_no_gain_to_keep() -> None:
    names = {"plain": create_seed_results(TAUGHT), "teacher": create_seed_results(PLAIN)}
    row_results = compare_rows(create_rows("plain", "teacher"), names, teacher="teacher")
    assert row_results["plain"].share_kept == pytest.approx(0.55 / 0.30)
    assert row_results["plain"].gain_kept is None


def test_a_teacher_without_a_result_here_leaves_the_shares_out() -> None:
    row_results = compare_rows(
        create_rows("plain", "teacher"), {"plain": create_seed_results(PLAIN), "teacher": ()}, teacher="teacher"
    )
    assert (row_results["plain"].share_kept, row_results["plain"].gain_kept, list(row_results)) == (
        None,
        None,
        ["plain"],
    )


def test_searches_that_the_engine_refused_are_named_because_they_count_0() -> None:
    refusals = {"q4": "maxClauseCount is set to 1024"}
    seeds = (SeedResult(per_query=PLAIN, recall_at_100=0.5, refusals=refusals),)
    results = compare_with_teacher(None, student=seeds)
    assert list_collection_notes(results, create_rows("plain", "teacher", "student"), None) == (
        "student: the engine refused 1 query, counted as 0: 'q4' (maxClauseCount is set to 1024)",
    )
