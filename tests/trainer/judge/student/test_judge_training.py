"""Training a judge: every method lowers its loss, only the upper layers learn, and the thresholds keep the grades' shares."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch

from querylift.index_tools.judging.grade_scale import DEFAULT_SCALE
from querylift.trainer.judge.student.judge_model import JudgeModel
from querylift.trainer.judge.student.judge_training import (
    TrainingSummary,
    choose_grade_thresholds,
    compute_expected_grades,
    compute_rate_share,
    fit_cosine_classifier,
    make_example,
    predict_probabilities,
    train_judge,
)
from tests.helpers.bert_folders import load_tiny_judge, make_config, make_pair, make_topic_pairs, write_tiny_bert

READINGS = pytest.mark.parametrize("reading", ["apart", "joint"])
TRAINING = {"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, "classifier_learning_rate": 3e-2}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


def train(bert: Path, *, reading: str = "apart", **training: Any) -> tuple[JudgeModel, TrainingSummary]:
    model = load_tiny_judge(bert, reading=reading)
    config = make_config(training={**TRAINING, **training})
    return model, train_judge(model, make_topic_pairs(), config, DEFAULT_SCALE)


@READINGS
@pytest.mark.parametrize(("method", "reasoned"), [("crsd", 40), ("kl", 40), ("standard", 0), ("soft", 0)])
def test_training_on_forty_pairs_lowers_the_loss(bert: Path, reading: str, method: str, reasoned: int) -> None:
    model, summary = train(bert, reading=reading, method=method)
    assert (summary.pairs, summary.with_reasoning) == (40, reasoned)
    assert len(summary.losses) == 4
    assert summary.losses[-1] < summary.losses[0] - 0.01
    assert not model.bert.training
    assert not any(layer.training for layer in model.bert.encoder.layer)


def test_frozen_layers_keep_their_weights_and_upper_layers_change(bert: Path) -> None:
    before = load_tiny_judge(bert).bert.state_dict()
    model, _ = train(bert)
    changed = {name for name, weights in model.bert.state_dict().items() if not torch.equal(weights, before[name])}
    assert {name.rsplit(".", 1)[0].split("layer.1")[0] for name in changed} == {"encoder."}
    assert len(changed) == len([name for name in before if "layer.1." in name])
    assert model.classifier.weight.abs().sum() > 0


@READINGS
def test_the_same_seed_trains_the_same_judge_and_another_seed_another(bert: Path, reading: str) -> None:
    first, again, other = (
        predict_probabilities(train(bert, reading=reading, seed=seed)[0], make_topic_pairs()) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_progress_counts_the_pairs_of_all_epochs(bert: Path) -> None:
    counts: list[int] = []
    config = make_config(training={**TRAINING, "max_pairs": 20, "batch_size": 8, "epochs": 2})
    summary = train_judge(load_tiny_judge(bert), make_topic_pairs(), config, DEFAULT_SCALE, progress=counts.append)
    assert summary.pairs == 20
    assert sorted(counts) == counts
    assert counts[-1] == 40


def test_the_cosine_alone_is_the_start_of_the_classifier(bert: Path) -> None:
    model, config = load_tiny_judge(bert), make_config()
    rows = [make_pair("boats", "boats", 3), make_pair("stars", "stars", 3)] * 4
    rows += [make_pair("boats", "courts judges", 0), make_pair("stars", "dough flour", 0)] * 4
    fit_cosine_classifier(model, [make_example(model, row, [0, 4, 8, 12], config) for row in rows])
    assert not model.classifier.weight[:, :-1].any()
    assert model.classifier.weight[3, -1] > model.classifier.weight[0, -1]
    probabilities = predict_probabilities(model, rows)
    assert all(probabilities[number][row.grade] > 0.6 for number, row in enumerate(rows))


@READINGS
def test_predictions_are_in_the_order_of_the_pairs_whatever_their_length(bert: Path, reading: str) -> None:
    model, _ = train(bert, reading=reading)
    rows = [make_pair("boats", " ".join(["stars", "boats"] * (70 - number)), 1) for number in range(70)]
    counts: list[int] = []
    together = predict_probabilities(model, rows, progress=counts.append)
    assert counts == [64, 70]
    assert len(model.kept_states) > 0
    alone = [predict_probabilities(model, [row])[0] for row in rows]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-3, rtol=1e-3)
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in together)
    assert predict_probabilities(model, []) == []


def test_the_reasoning_pass_reads_the_reasoning(bert: Path) -> None:
    model, _ = train(bert)
    rows = make_topic_pairs()[:4]
    assert predict_probabilities(model, rows, with_reasoning=True) != predict_probabilities(model, rows)


# -- thresholds ---------------------------------------------------------------------------------------------------------


def test_thresholds_by_hand_make_the_grades_as_frequent_as_they_were_given() -> None:
    expected = [0.1, 0.9, 0.2, 1.1, 2.5, 0.3, 1.9, 0.4]
    given = [0, 0, 0, 0, 1, 1, 2, 3]
    thresholds = choose_grade_thresholds(expected, given, highest=3)
    assert thresholds == (0.9, 1.9, 2.5)  # the fifth, the seventh and the eighth of the ordered expected grades
    grades = [sum(value >= threshold for threshold in thresholds) for value in expected]
    assert Counter(grades) == Counter(given)


def test_a_grade_that_was_never_given_lies_above_all_expected_grades() -> None:
    assert choose_grade_thresholds([0.1, 0.2, 0.3, 0.4], [0, 0, 2, 2], highest=3) == (0.3, 0.3, 1.4)
    assert choose_grade_thresholds([0.5], [3], highest=3) == (0.5, 0.5, 0.5)


def test_the_expected_grade_is_the_mean_over_the_probabilities() -> None:
    assert compute_expected_grades([[1, 0, 0], [0.25, 0.5, 0.25], [0, 0.1, 0.9]]) == pytest.approx([0, 1, 1.9])


def test_rare_grades_are_still_given_when_all_of_their_pairs_were_trained_on(bert: Path) -> None:
    """The balanced choice takes every pair of grade 3, and few of grade 0. The thresholds must not rest on what is left."""
    rows = make_topic_pairs()
    common = [make_pair(row.query, row.document, 0, number=1000 + number) for number, row in enumerate(rows[:10] * 9)]
    model = load_tiny_judge(bert)
    config = make_config(training={**TRAINING, "max_pairs": 44, "epochs": 1})
    summary = train_judge(model, [*rows, *common], config, DEFAULT_SCALE)
    expected = compute_expected_grades(predict_probabilities(model, [*rows, *common]))
    grades = Counter(sum(value >= threshold for threshold in summary.thresholds) for value in expected)
    assert grades[3] >= 1
    assert sum(grades[grade] for grade in (1, 2, 3)) == pytest.approx(30, abs=8)


# -- learning rate ------------------------------------------------------------------------------------------------------


def test_the_rate_rises_during_the_warm_up_and_falls_to_zero_in_a_line() -> None:
    shares = [compute_rate_share(step, 10, warmup_share=0.2) for step in range(11)]
    assert shares == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])
    assert [compute_rate_share(step, 1, warmup_share=0.0) for step in (0, 1)] == [1, 0]
