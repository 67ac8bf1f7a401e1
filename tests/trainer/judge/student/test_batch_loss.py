"""The loss of a whole batch is the weighted sum of its terms, and pairs without reasoning count in one pass only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch

from querylift.trainer.judge.annotations import Annotation
from querylift.trainer.judge.student.judge_model import JudgeModel
from querylift.trainer.judge.student.judge_training import TrainingExample, compute_batch_loss, make_example
from querylift.trainer.judge.student.losses import compute_contrast, compute_divergence
from querylift.trainer.judge.student.student_config import JudgeConfig
from tests.helpers.bert_folders import load_tiny_judge, make_config, make_pair, write_tiny_bert

PAIRS = [
    make_pair("sailing boats", "sailing boats harbour", 3),
    make_pair("planets comets", "galaxies moons eclipses", 1),
    make_pair("dough", "courts judges", 0),
]
EVEN_SUMS = [0.0, 4.0, 8.0, 12.0]
LOSS = {"reasoning_weight": 0.7, "contrast_weight": 0.3, "temperature": 0.5}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(params=["apart", "joint"])
def model(bert: Path, request: pytest.FixtureRequest) -> JudgeModel:
    """Give a judge without dropout whose classifier is random."""
    model = load_tiny_judge(bert, reading=request.param)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.randn(model.classifier.weight.shape, generator=torch.manual_seed(5)) / 10)
    model.set_training(False)
    return model


def make_examples(model: JudgeModel, config: JudgeConfig, pairs: list[Annotation]) -> list[TrainingExample]:
    return [make_example(model, pair, EVEN_SUMS, config) for pair in pairs]


def compute_loss(model: JudgeModel, pairs: list[Annotation], method: str, **loss: Any) -> float:
    config = make_config(training={"method": method}, loss={**LOSS, **loss})
    loss_value: float = compute_batch_loss(model, make_examples(model, config, pairs), config).item()
    return loss_value


def read_features(model: JudgeModel, pairs: list[Annotation], *, with_reasoning: bool) -> Any:
    """Return the features of each pair, read alone."""
    return torch.cat(
        [
            model.compute_features(
                [model.tokenize_pair(pair.query, pair.document, pair.reasoning if with_reasoning else "")]
            )
            for pair in pairs
        ]
    )


def compute_mean_cross_entropy(model: JudgeModel, features: Any, pairs: list[Annotation]) -> float:
    """Return the mean of minus the logarithm of the right grade's probability."""
    probabilities = model.classifier(features).softmax(dim=1)
    terms = [-torch.log(probabilities[row, pair.grade]).item() for row, pair in enumerate(pairs)]
    return float(sum(terms) / len(terms))


def test_the_loss_is_the_weighted_sum_of_both_passes_and_the_contrast(model: JudgeModel) -> None:
    standard = read_features(model, PAIRS, with_reasoning=False)
    reasoning = read_features(model, PAIRS, with_reasoning=True)
    passes = [compute_mean_cross_entropy(model, features, PAIRS) for features in (standard, reasoning)]
    contrast = compute_contrast(standard, reasoning, make_config(loss=LOSS).loss).item()
    assert passes[0] != pytest.approx(passes[1])
    expected = passes[0] + 0.7 * passes[1] + 0.3 * contrast
    assert compute_loss(model, PAIRS, "crsd") == pytest.approx(expected, abs=2e-3)


def test_the_method_kl_pulls_the_probabilities_in_place_of_the_vectors(model: JudgeModel) -> None:
    standard = read_features(model, PAIRS, with_reasoning=False)
    reasoning = read_features(model, PAIRS, with_reasoning=True)
    passes = [compute_mean_cross_entropy(model, features, PAIRS) for features in (standard, reasoning)]
    logits = model.classifier(standard), model.classifier(reasoning)
    expected = passes[0] + 0.7 * passes[1] + 5 * compute_divergence(*logits, make_config(loss=LOSS).loss).item()
    assert compute_loss(model, PAIRS, "kl", contrast_weight=5) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("method", ["standard", "soft"])
def test_the_simpler_methods_read_no_reasoning(model: JudgeModel, method: str) -> None:
    """The criteria of these pairs say the same as their grades, so the soft labels are hard."""
    standard = read_features(model, PAIRS, with_reasoning=False)
    expected = compute_mean_cross_entropy(model, standard, PAIRS)
    assert compute_loss(model, PAIRS, method) == pytest.approx(expected, abs=2e-3)
    config = make_config(training={"method": method})
    assert {example.reasoning_texts for example in make_examples(model, config, PAIRS)} == {None}


@pytest.mark.parametrize("method", ["crsd", "kl"])
@pytest.mark.parametrize("blank", ["", " \n"])
def test_pairs_without_reasoning_train_the_standard_pass_only(model: JudgeModel, method: str, blank: str) -> None:
    unreasoned = [replace(pair, reasoning=blank) for pair in PAIRS]
    standard = compute_mean_cross_entropy(model, read_features(model, PAIRS, with_reasoning=False), PAIRS)
    assert compute_loss(model, unreasoned, method) == pytest.approx(standard, abs=2e-3)


@pytest.mark.parametrize("method", ["crsd", "kl"])
def test_a_batch_with_one_reasoned_pair_has_both_passes_and_no_contrast(model: JudgeModel, method: str) -> None:
    pairs = [replace(PAIRS[0], reasoning=""), PAIRS[1], replace(PAIRS[2], reasoning="")]
    standard = compute_mean_cross_entropy(model, read_features(model, PAIRS, with_reasoning=False), PAIRS)
    reasoning = read_features(model, [PAIRS[1]], with_reasoning=True)
    expected = standard + 0.7 * compute_mean_cross_entropy(model, reasoning, [PAIRS[1]])
    assert compute_loss(model, pairs, method, contrast_weight=100) == pytest.approx(expected, abs=2e-3)


def test_each_reasoning_is_contrasted_with_its_own_pair_where_another_has_none(model: JudgeModel) -> None:
    pairs = [replace(PAIRS[0], reasoning=""), PAIRS[1], PAIRS[2]]
    standard = read_features(model, PAIRS, with_reasoning=False)
    reasoning = read_features(model, PAIRS[1:], with_reasoning=True)
    passes = compute_mean_cross_entropy(model, standard, PAIRS), compute_mean_cross_entropy(model, reasoning, PAIRS[1:])
    contrast = compute_contrast(standard[1:], reasoning, make_config(loss=LOSS).loss).item()
    expected = passes[0] + 0.7 * passes[1] + 10 * contrast
    assert compute_loss(model, pairs, "crsd", contrast_weight=10) == pytest.approx(expected, abs=2e-2)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_with_stop_gradient_the_contrast_reaches_the_layers_through_the_standard_pass_alone(
    model: JudgeModel, stop_gradient: bool
) -> None:
    """The gradient of the contrast alone is the difference of two whole gradients, with the contrast and without."""
    gradients = []
    for weight in (0.0, 1.0):
        config = make_config(loss={**LOSS, "contrast_weight": weight, "stop_gradient": stop_gradient})
        model.bert.zero_grad()
        compute_batch_loss(model, make_examples(model, config, PAIRS), config).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.list_layer_parameters()]).clone())
    model.bert.zero_grad()
    standard = read_features(model, PAIRS, with_reasoning=False)
    with torch.no_grad():
        fixed_reasoning = read_features(model, PAIRS, with_reasoning=True)
    compute_contrast(standard, fixed_reasoning, make_config(loss=LOSS).loss).backward()
    expected = torch.cat([p.grad.flatten() for p in model.list_layer_parameters()])
    difference = (gradients[1] - gradients[0] - expected).norm() / expected.norm()
    assert (difference < 0.02) == stop_gradient
