"""Rankings are measured as `evaluate` measures them, by labels that may come from a judge's file."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from querylift.index_tools.corpora.trec_files import write_qrels
from querylift.index_tools.evaluation.measures import evaluate_run
from querylift.trainer.rewards.labels import read_labels
from querylift.trainer.rewards.ranking_measures import Measurer


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), min_size=1), st.data())
def test_several_rankings_of_a_query_measure_as_evaluate_measures_each(grades: dict[str, int], data: Any) -> None:
    qrels = {"q": {**grades, "sure": 1}, "other": {"a": 1}}
    rankings = data.draw(st.lists(st.lists(st.sampled_from("abcdefghijk"), max_size=14), min_size=1, max_size=4))
    measured = Measurer(qrels, ["ndcg_at_10", "recall_at_100"])([("q", ranking) for ranking in rankings])
    for ranking, values in zip(rankings, measured, strict=True):
        expected = evaluate_run({"q": ranking}, qrels).per_query
        assert values == {measure: expected[measure]["q"] for measure in ("ndcg_at_10", "recall_at_100")}


def test_ndcg_at_100_is_the_linear_gain_over_that_of_the_best_order() -> None:
    grades = {"a": 3, "b": 1, "c": 2}
    ranking = [*(f"x{i}" for i in range(40)), "b", *(f"y{i}" for i in range(50)), "a"]
    gain = 1 / math.log2(42) + 3 / math.log2(93)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert Measurer({"q": grades}, ["ndcg_at_100"])([("q", ranking)])[0]["ndcg_at_100"] == pytest.approx(gain / ideal)


def test_condensed_ndcg_leaves_out_the_documents_that_nobody_judged() -> None:
    measures = Measurer({"q": {"a": 2, "b": 0, "c": 1}}, ["condensed_ndcg_at_5", "ndcg_at_5"])
    plain_list, with_unjudged, all_unjudged = measures(
        [("q", ["b", "a", "c"]), ("q", ["x1", "b", "x2", "a", "x3", "c"]), ("q", ["x1", "x2"])]
    )
    by_hand = (2 / math.log2(3) + 1 / math.log2(4)) / (2 / math.log2(2) + 1 / math.log2(3))
    assert plain_list == {"condensed_ndcg_at_5": pytest.approx(by_hand), "ndcg_at_5": pytest.approx(by_hand)}
    assert with_unjudged["condensed_ndcg_at_5"] == pytest.approx(by_hand)
    assert with_unjudged["ndcg_at_5"] < by_hand
    assert all_unjudged == {"condensed_ndcg_at_5": 0.0, "ndcg_at_5": 0.0}


def test_a_query_without_a_relevant_document_has_no_usable_judgments(tmp_path: Path) -> None:
    write_qrels(tmp_path / "judge.txt", {"1": {"a": 2}, "2": {"a": 1}, "3": {"a": 0}})
    assert list(read_labels(tmp_path / "judge.txt").select_usable_qrels()) == ["1", "2"]
    assert list(read_labels(tmp_path / "judge.txt", relevant_from=2).select_usable_qrels()) == ["1"]
