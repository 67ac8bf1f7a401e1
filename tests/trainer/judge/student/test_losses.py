"""Each term of the judge's loss, computed by hand on a batch of three."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch

from querylift.trainer.judge.student.losses import compute_contrast, compute_divergence, compute_soft_cross_entropy
from querylift.trainer.judge.student.student_config import LossOptions

STANDARD = [[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]
REASONING = [[2.0, 0.0], [3.0, 4.0], [0.0, 1.0]]
COSINES = [[1.0, 0.6, 0.0], [0.0, 0.8, 1.0], [0.6, 1.0, 0.8]]
"""The cosine of each standard vector with each reasoning vector."""


def contrast_by_hand(cosines: Sequence[Sequence[float]], temperature: float) -> float:
    terms = []
    for position, row in enumerate(cosines):
        exponentials = [math.exp(cosine / temperature) for cosine in row]
        terms.append(-math.log(exponentials[position] / sum(exponentials)))
    return sum(terms) / len(terms)


def softmax(row: Sequence[float]) -> list[float]:
    exponentials = [math.exp(number) for number in row]
    return [number / sum(exponentials) for number in exponentials]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1])
def test_the_contrast_is_infonce_over_the_cosines_of_the_batch(temperature: float) -> None:
    options = LossOptions(temperature=temperature, direction="to_reasoning")
    contrast = compute_contrast(torch.tensor(STANDARD), torch.tensor(REASONING), options)
    assert contrast.item() == pytest.approx(contrast_by_hand(COSINES, temperature), rel=1e-5)


def test_the_direction_both_is_the_mean_with_the_contrast_of_the_reasoning_vectors() -> None:
    options = LossOptions(temperature=0.5, direction="both")
    contrast = compute_contrast(torch.tensor(STANDARD), torch.tensor(REASONING), options)
    transposed = [list(column) for column in zip(*COSINES, strict=True)]
    mean = (contrast_by_hand(COSINES, 0.5) + contrast_by_hand(transposed, 0.5)) / 2
    assert contrast.item() == pytest.approx(mean, rel=1e-5)


def test_vectors_that_agree_with_their_own_reasoning_alone_have_a_smaller_contrast() -> None:
    options = LossOptions()
    own = compute_contrast(torch.eye(3), torch.eye(3), options)
    other = compute_contrast(torch.eye(3), torch.eye(3).roll(1, 0), options)
    assert own.item() == pytest.approx(math.log(1 + 2 * math.exp(-10)), abs=1e-6)
    assert other.item() == pytest.approx(10 + math.log(1 + 2 * math.exp(-10)), rel=1e-5)


def test_the_divergence_is_that_of_the_standard_pass_from_the_reasoning_pass() -> None:
    """The sum over grades of p_r * (log p_r - log p_s), whatever the temperature of the contrast is."""
    standard = [[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]]
    reasoning = [[1.0, 1.0], [2.0, -1.0], [-3.0, 1.0]]
    terms = []
    for row, target in zip(standard, reasoning, strict=True):
        p_s, p_r = softmax(row), softmax(target)
        terms.append(sum(r * (math.log(r) - math.log(s)) for r, s in zip(p_r, p_s, strict=True)))
    assert terms[1] == 0
    divergence = compute_divergence(torch.tensor(standard), torch.tensor(reasoning), LossOptions(temperature=2))
    assert divergence.item() == pytest.approx(sum(terms) / 3, rel=1e-5)


@pytest.mark.parametrize("compute_pull", [compute_contrast, compute_divergence])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_reasoning_pass_moves_only_without_stop_gradient(compute_pull: object, stop_gradient: bool) -> None:
    assert callable(compute_pull)
    standard = torch.tensor(STANDARD, requires_grad=True)
    reasoning = torch.tensor(REASONING, requires_grad=True)
    compute_pull(standard, reasoning, LossOptions(stop_gradient=stop_gradient, direction="both")).backward()
    assert standard.grad.abs().sum() > 0
    assert (reasoning.grad is None) == stop_gradient


def test_the_cross_entropy_against_soft_labels_is_the_mean_of_minus_p_log_q() -> None:
    logits, labels = [[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], [[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]
    terms = [
        -sum(label * math.log(q) for label, q in zip(row, softmax(logit), strict=True))
        for logit, row in zip(logits, labels, strict=True)
    ]
    loss = compute_soft_cross_entropy(torch.tensor(logits), torch.tensor(labels))
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-5)
