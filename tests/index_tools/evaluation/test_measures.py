"""Every formula that `evaluate` promises, computed by hand; the three traps of trec_eval."""

from __future__ import annotations

from math import log2

import pytest

from querylift.index_tools.evaluation.measures import LABELS, MEASURES, calculate_mean, evaluate_run


def test_ndcg_has_linear_gain() -> None:
    evaluation = evaluate_run({"q": ["b", "x", "a"]}, {"q": {"a": 3, "b": 1}})
    by_hand = (1 / log2(2) + 3 / log2(4)) / (3 / log2(2) + 1 / log2(3))
    assert evaluation.per_query["ndcg_at_10"]["q"] == pytest.approx(by_hand)
    exponential = (1 / log2(2) + 7 / log2(4)) / (7 / log2(2) + 1 / log2(3))
    assert evaluation.per_query["ndcg_at_10"]["q"] != pytest.approx(exponential, abs=0.05)


def test_ndcg_is_cut_at_10_in_the_run_and_in_the_best_order() -> None:
    eleven = {f"r{i}": 1 for i in range(11)}
    best = evaluate_run({"q": list(eleven)}, {"q": eleven})
    assert best.means["ndcg_at_10"] == pytest.approx(1.0)
    late = evaluate_run({"q": [f"x{i}" for i in range(10)] + ["a"]}, {"q": {"a": 1}})
    assert late.means["ndcg_at_10"] == 0.0


def test_documents_without_a_grade_or_below_zero_gain_nothing() -> None:
    evaluation = evaluate_run({"q": ["spam", "unknown", "a"]}, {"q": {"spam": -2, "zero": 0, "a": 2}})
    assert evaluation.means["ndcg_at_10"] == pytest.approx((2 / log2(4)) / (2 / log2(2)))


def test_average_precision_counts_relevant_documents_that_were_not_found() -> None:
    evaluation = evaluate_run({"q": ["a", "x", "b"]}, {"q": {"a": 1, "b": 1, "c": 1, "d": 1}})
    assert evaluation.means["map"] == pytest.approx((1 / 1 + 2 / 3) / 4)


def test_mrr_is_one_over_the_rank_of_the_first_relevant_document() -> None:
    assert evaluate_run({"q": ["x", "y", "a", "b"]}, {"q": {"a": 1, "b": 1}}).means["mrr_at_10"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("before", "expected"), [(9, 1 / 10), (10, 0.0)])
def test_mrr_is_cut_at_10(before: int, expected: float) -> None:
    run = {"q": [f"x{i}" for i in range(before)] + ["a"]}
    assert evaluate_run(run, {"q": {"a": 1}}).means["mrr_at_10"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "at_100", "at_1000"), [(99, 1 / 2, 1 / 2), (100, 0.0, 1 / 2), (999, 0.0, 1 / 2), (1000, 0.0, 0.0)]
)
def test_recall_is_the_share_of_relevant_documents_within_the_cut(before: int, at_100: float, at_1000: float) -> None:
    run = {"q": [f"x{i}" for i in range(before)] + ["a"]}
    means = evaluate_run(run, {"q": {"a": 1, "never found": 1}}).means
    assert (means["recall_at_100"], means["recall_at_1000"]) == (at_100, at_1000)


def test_binary_measures_start_at_relevant_from_and_ndcg_keeps_every_grade() -> None:
    run, qrels = {"q": ["low", "high"]}, {"q": {"low": 1, "high": 2}}
    strict, loose = evaluate_run(run, qrels, relevant_from=2).means, evaluate_run(run, qrels).means
    assert (strict["map"], strict["mrr_at_10"], strict["recall_at_100"]) == (1 / 2, 1 / 2, 1.0)
    assert (loose["map"], loose["mrr_at_10"], loose["recall_at_100"]) == (1.0, 1.0, 1.0)
    by_hand = (1 / log2(2) + 2 / log2(3)) / (2 / log2(2) + 1 / log2(3))
    assert strict["ndcg_at_10"] == loose["ndcg_at_10"] == pytest.approx(by_hand)


@pytest.mark.parametrize("run", [{"found": ["a"]}, {"found": ["a"], "lost": []}])
def test_a_judged_query_without_hits_counts_zero_in_every_mean(run: dict[str, list[str]]) -> None:
    evaluation = evaluate_run(run, {"found": {"a": 1}, "lost": {"b": 1}})
    assert {measure: evaluation.per_query[measure]["lost"] for measure in MEASURES} == dict.fromkeys(MEASURES, 0.0)
    assert dict(evaluation.means) == dict.fromkeys(MEASURES, 0.5)
    assert (evaluation.query_count, evaluation.missing) == (2, ("lost",))


def test_a_run_without_any_hit_scores_zero() -> None:
    evaluation = evaluate_run({}, {"q": {"a": 1}})
    assert dict(evaluation.means) == dict.fromkeys(MEASURES, 0.0)
    assert evaluation.missing == ("q",)


def test_a_query_that_nobody_judged_is_ignored() -> None:
    evaluation = evaluate_run({"q": ["a"], "unjudged": ["a"]}, {"q": {"a": 1}})
    assert (evaluation.query_count, evaluation.means["map"]) == (1, 1.0)
    assert "unjudged" not in evaluation.per_query["map"]


def test_a_judged_query_without_a_relevant_document_is_left_out_of_every_mean_and_counted() -> None:
    qrels = {"q": {"a": 2}, "only low": {"a": 1}, "nothing": {"a": 0}, "empty": {}}
    evaluation = evaluate_run({"q": ["a"], "only low": ["a"], "nothing": ["a"]}, qrels, relevant_from=2)
    assert (evaluation.query_count, evaluation.means["ndcg_at_10"]) == (1, 1.0)
    assert evaluation.without_relevant == ("only low", "nothing", "empty")
    assert evaluation.missing == ()


@pytest.mark.parametrize("order", [["a", "z"], ["z", "a"]])
def test_the_order_of_the_run_stands_whatever_the_document_ids(order: list[str]) -> None:
    assert evaluate_run({"q": order}, {"q": {"z": 1}}).means["mrr_at_10"] == 1 / (order.index("z") + 1)


def test_long_runs_keep_their_order_although_trec_eval_holds_scores_in_single_precision() -> None:
    run = {"q": [f"x{i:06}" for i in range(60_000, 0, -1)]}
    assert evaluate_run(run, {"q": {"x059001": 1}}).means["recall_at_1000"] == 1.0
    assert evaluate_run(run, {"q": {"x059000": 1}}).means["recall_at_1000"] == 0.0


def test_a_document_listed_twice_keeps_its_first_place_only() -> None:
    evaluation = evaluate_run({"q": ["a", "a", "b"]}, {"q": {"a": 1, "b": 1}})
    assert evaluation.means["map"] == 1.0


def test_every_measure_is_given_per_query_and_as_a_mean() -> None:
    evaluation = evaluate_run({"q": ["a"]}, {"q": {"a": 1}})
    assert tuple(evaluation.per_query) == tuple(evaluation.means) == MEASURES == tuple(LABELS)


@pytest.mark.parametrize(("qrels", "grade"), [({}, 1), ({"q": {"a": 0}}, 1), ({"q": {"a": 1}}, 2)])
def test_qrels_without_any_relevant_document_are_refused(qrels: dict[str, dict[str, int]], grade: int) -> None:
    with pytest.raises(ValueError, match=f"no query of the qrels has a document graded {grade} or above"):
        evaluate_run({"q": ["a"]}, qrels, relevant_from=grade)


def test_grade_zero_cannot_be_relevant() -> None:
    with pytest.raises(ValueError, match="relevant_from is 0; give the lowest grade"):
        evaluate_run({"q": ["a"]}, {"q": {"a": 1}}, relevant_from=0)


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        calculate_mean([])


def test_a_grade_as_large_as_an_id_is_refused_because_trec_eval_would_be_silently_wrong() -> None:
    with pytest.raises(ValueError, match="a grade of query 'q' is beyond 1000; use smaller grades"):
        evaluate_run({"q": ["a"]}, {"q": {"a": 2147483647}})
